//! Questions to the daemon of a root directory, which may be just starting, or being replaced.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use larder_proto::grpc::control::control_client::ControlClient;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use super::holders;
use crate::config::Config;

/// Largest answer, bytes: 2,000 images of 30 layers at a kilobyte each. tonic's own limit, 4 MiB, would
/// be reached by a node with 130 of them.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long nobody may listen: what a start takes before it binds its socket, a tenth of a second, on a
/// machine that does much else. Who asks where there is no daemon waits as long.
const STARTING: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// After so long it is told that nobody serves the socket. A takeover takes a twentieth of it, and on a
/// machine that does much else half.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// How much longer nobody may serve a socket that somebody holds: a daemon that mounts hundreds of layers
/// after its supervisor died, too, is done by then, and one that fails at its start was tried ten times.
const SERVED: Duration = Duration::from_secs(10);

/// Somebody holds a socket, and nobody serves it.
#[derive(Debug, thiserror::Error)]
enum Unserved {
    #[error(
        "the socket {} is there and nobody serves it: a supervisor holds it, and its daemon does not start \
         or has not yet. The log says why, as in `journalctl -u larder-snapshotter`; reads of running \
         containers that need the daemon wait for it. After an upgrade, put the program of before back; \
         nothing else needs to be restarted",
        .0.display()
    )]
    NotStarted(PathBuf),
    #[error(
        "the socket {} is there and nobody serves it: a signal (SIGSTOP) has stopped process {process}, which \
         holds it. `kill -CONT {process}` lets it go on; reads of running containers that need the \
         daemon wait for it",
        .socket.display()
    )]
    Stopped { socket: PathBuf, process: String },
}

impl Unserved {
    /// Why nobody serves `socket`.
    fn by(socket: PathBuf) -> Self {
        let stopped: Vec<_> = holders::stopped(&socket)
            .iter()
            .map(u32::to_string)
            .collect();
        if stopped.is_empty() {
            return Self::NotStarted(socket);
        }
        let process = stopped.join(" ");
        Self::Stopped { socket, process }
    }
}

/// Whether a call failed for that reason, and what is to be told of it.
pub(super) fn unserved(status: &Status) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>();
        let inner = inner.and_then(|error| error.get_ref()?.downcast_ref::<Unserved>());
        if let Some(unserved) = inner {
            return Some(unserved.to_string());
        }
        cause = error.source();
    }
    None
}

/// Connects to a socket that may be held by a supervisor without a daemon: connections are made then,
/// and nobody ever answers.
#[derive(Debug, Clone)]
struct Patient {
    socket: PathBuf,
    served: Duration,
}

impl Patient {
    /// A connection that somebody took. Nothing was asked before, so that nothing is done later for
    /// somebody who gave up.
    async fn connect(self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket).await?;
        // A server sends its settings first.
        if let Ok(readable) = timeout(TOLD_AFTER, stream.readable()).await {
            return readable.map(|()| stream);
        }
        eprintln!(
            "larder-snapshotter: nobody serves {} yet; waiting for at most {} s",
            self.socket.display(),
            self.served.as_secs()
        );
        match timeout(self.served, stream.readable()).await {
            Ok(readable) => readable.map(|()| stream),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                Unserved::by(self.socket),
            )),
        }
    }
}

impl Service<Uri> for Patient {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.clone().connect();
        Box::pin(async { Ok(TokioIo::new(connecting.await?)) })
    }
}

/// The answer of the daemon that owns `root`. `ask` may be called again: where the connection fails,
/// nobody answers now, as after a socket was bound by systemd before there was a daemon.
pub(super) async fn asked<T, A>(root: &Path, ask: A) -> Result<T, Status>
where
    A: AsyncFn(ControlClient<Channel>) -> Result<Response<T>, Status>,
{
    asked_within(root, SERVED, ask).await
}

async fn asked_within<T, A>(root: &Path, served: Duration, ask: A) -> Result<T, Status>
where
    A: AsyncFn(ControlClient<Channel>) -> Result<Response<T>, Status>,
{
    let until = Instant::now() + STARTING;
    loop {
        let socket = Config::control(root);
        // Servers want a well-formed authority, any will do.
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector_lazy(Patient { socket, served });
        let control = ControlClient::new(channel);
        let control = control.max_decoding_message_size(ANSWER_BYTES_MAX);
        match ask(control).await {
            // Where no root is, none is starting.
            Err(status)
                if status.code() == Code::Unavailable
                    && Instant::now() < until
                    && root.is_dir() =>
            {
                tokio::time::sleep(LOOK).await;
            }
            answer => return answer.map(Response::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use larder_proto::grpc::control::control_server::{self, ControlServer};
    use larder_proto::grpc::control::{
        CompleteRequest, CompleteResponse, ExportProfileResponse, FindProfileRequest,
        ImportProfileRequest, ListProfilesResponse, MountImageRequest, MountImageResponse,
        PinRequest, PinResponse, Profile, RemoveProfileResponse, StatusResponse,
        UnmountImageRequest, UnpinRequest,
    };
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;

    use tonic::Request;

    use super::super::status;
    use super::*;

    /// A daemon that answers with its version, and to nothing else.
    struct Fresh;

    #[tonic::async_trait]
    impl control_server::Control for Fresh {
        async fn status(&self, _: Request<()>) -> Result<Response<StatusResponse>, Status> {
            Ok(Response::new(StatusResponse {
                version: "fresh".to_owned(),
                ..StatusResponse::default()
            }))
        }

        async fn mount(
            &self,
            _: Request<MountImageRequest>,
        ) -> Result<Response<MountImageResponse>, Status> {
            Err(Status::unimplemented("mount"))
        }

        async fn unmount(&self, _: Request<UnmountImageRequest>) -> Result<Response<()>, Status> {
            Err(Status::unimplemented("unmount"))
        }

        async fn pin(&self, _: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
            Err(Status::unimplemented("pin"))
        }

        async fn unpin(&self, _: Request<UnpinRequest>) -> Result<Response<PinResponse>, Status> {
            Err(Status::unimplemented("unpin"))
        }

        async fn complete(
            &self,
            _: Request<CompleteRequest>,
        ) -> Result<Response<CompleteResponse>, Status> {
            Err(Status::unimplemented("complete"))
        }

        async fn list_profiles(
            &self,
            _: Request<()>,
        ) -> Result<Response<ListProfilesResponse>, Status> {
            Err(Status::unimplemented("list_profiles"))
        }

        async fn export_profile(
            &self,
            _: Request<FindProfileRequest>,
        ) -> Result<Response<ExportProfileResponse>, Status> {
            Err(Status::unimplemented("export_profile"))
        }

        async fn import_profile(
            &self,
            _: Request<ImportProfileRequest>,
        ) -> Result<Response<Profile>, Status> {
            Err(Status::unimplemented("import_profile"))
        }

        async fn remove_profile(
            &self,
            _: Request<FindProfileRequest>,
        ) -> Result<Response<RemoveProfileResponse>, Status> {
            Err(Status::unimplemented("remove_profile"))
        }
    }

    /// Regression: right after a start `status` said that no daemon answers, as the control socket was
    /// bound a moment later than others, or was one of a daemon that had been killed.
    ///
    /// Promise: a command finds a daemon that is just starting, whatever lies at its socket before.
    #[tokio::test]
    async fn a_daemon_that_is_starting_is_waited_for() {
        for is_stale in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let socket = Config::control(root.path());
            if is_stale {
                drop(UnixListener::bind(&socket).unwrap());
            }
            let start = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = std::fs::remove_file(&socket);
                let listener = UnixListener::bind(&socket).unwrap();
                tonic::transport::Server::builder()
                    .add_service(ControlServer::new(Fresh))
                    .serve_with_incoming(UnixListenerStream::new(listener))
                    .await
            };
            tokio::select! {
                served = start => panic!("{served:?}"),
                answer = status::ask(root.path()) => {
                    assert_eq!(answer.unwrap().version, "fresh");
                }
            }
        }
    }

    /// Regression: `status` waited without a word while the program of an upgrade failed at its start.
    ///
    /// Promise: where a supervisor holds the socket and no daemon serves it, that is said, and nothing
    /// was asked of whoever takes the connection later; a daemon that comes in time answers.
    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_told() {
        let root = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(Config::control(root.path())).unwrap();
        let ask = async |mut control: ControlClient<Channel>| control.status(()).await;
        let refused = asked_within(root.path(), Duration::ZERO, ask).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        let told = status::refused(root.path(), &refused).to_string();
        assert!(told.contains("is there and nobody serves it"), "{told}");
        assert!(told.contains(root.path().to_str().unwrap()), "{told}");
        let (given_up, _) = listener.accept().await.unwrap();
        given_up.readable().await.unwrap();
        assert_eq!(given_up.try_read(&mut [0; 64]).unwrap(), 0, "nothing came");
        let late = async {
            tokio::time::sleep(TOLD_AFTER + Duration::from_millis(200)).await;
            tonic::transport::Server::builder()
                .add_service(ControlServer::new(Fresh))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        };
        tokio::select! {
            served = late => panic!("{served:?}"),
            answer = status::ask(root.path()) => assert_eq!(answer.unwrap().version, "fresh"),
        }
    }

    /// Promise: where there is no daemon, that is said after a moment, and at once where it has no root.
    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_told_soon() {
        let root = tempfile::tempdir().unwrap();
        for (place, patience) in [
            (root.path().to_owned(), STARTING),
            (root.path().join("nowhere"), Duration::ZERO),
        ] {
            let began = Instant::now();
            let refused = status::ask(&place).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable);
            let took = began.elapsed();
            assert!(
                took >= patience && took < patience + Duration::from_secs(10),
                "{took:?}"
            );
        }
    }
}
