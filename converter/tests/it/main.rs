//! The command `larder` from the outside: what it makes of images, and what it says of bad ones.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod attach;
#[cfg(test)]
mod bad;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod local;
mod operator;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod start;
