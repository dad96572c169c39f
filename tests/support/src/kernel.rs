//! Tests that need a kernel which mounts EROFS from plain files. On older kernels they are ignored,
//! and the runner says why.
//!
//! A test is a function, and a macro below makes it known to the runner under its own name.

/// Whether the kernel the tests were built on mounts EROFS from plain files.
pub const EROFS_ON_FILES: bool = cfg!(erofs_on_files);

/// Makes async functions of a driver, such as `fn outcome(driver: DriverChoice)`, tests with each of
/// the two: `outcome::erofs` and `outcome::fuse`.
#[macro_export]
macro_rules! on_both_drivers {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            $crate::if_erofs_works! {
                #[tokio::test(flavor = "multi_thread")]
                async fn erofs() {
                    super::$name("erofs".parse().expect("it is a driver")).await;
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn fuse() {
                super::$name("fuse".parse().expect("it is a driver")).await;
            }
        })+
    };
}

/// Makes functions of a driver's name, such as `fn outcome(driver: &str)`, tests with each of the two:
/// `outcome::erofs` and `outcome::fuse`.
#[macro_export]
macro_rules! on_both_drivers_blocking {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            $crate::if_erofs_works! {
                #[test]
                fn erofs() {
                    super::$name("erofs");
                }
            }

            #[test]
            fn fuse() {
                super::$name("fuse");
            }
        })+
    };
}

/// Makes async functions tests that need EROFS: `outcome::erofs`.
#[macro_export]
macro_rules! on_erofs {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            $crate::if_erofs_works! {
                #[tokio::test(flavor = "multi_thread")]
                async fn erofs() {
                    super::$name().await;
                }
            }
        })+
    };
}

/// Makes functions tests that need EROFS: `outcome::erofs`.
#[macro_export]
macro_rules! on_erofs_blocking {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            $crate::if_erofs_works! {
                #[test]
                fn erofs() {
                    super::$name();
                }
            }
        })+
    };
}

/// A test that needs EROFS.
#[cfg(erofs_on_files)]
#[doc(hidden)]
#[macro_export]
macro_rules! if_erofs_works {
    ($($test:tt)*) => { $($test)* };
}

/// A test that needs EROFS.
#[cfg(not(erofs_on_files))]
#[doc(hidden)]
#[macro_export]
macro_rules! if_erofs_works {
    ($($test:tt)*) => {
        $crate::with_attribute! { [ignore = "needs kernel ≥ 6.12"] $($test)* }
    };
}

/// An item with one more attribute.
#[doc(hidden)]
#[macro_export]
macro_rules! with_attribute {
    ($attribute:tt $($item:tt)*) => { # $attribute $($item)* };
}

#[cfg(test)]
mod tests {
    /// Else tests would be ignored that need not be, or fail for no reason of theirs.
    #[test]
    fn the_tests_run_on_the_kernel_they_were_built_for() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let numbers: Vec<u32> = release
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|number| number.parse().ok())
            .collect();
        assert_eq!(
            numbers >= vec![6, 12],
            super::EROFS_ON_FILES,
            "built for another kernel than {release}: touch tests/support/build.rs, build again"
        );
    }
}
