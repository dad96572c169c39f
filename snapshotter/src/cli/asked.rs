//! Questions to the daemon of a root directory, which may be just starting, or being replaced.

use std::path::Path;
use std::time::{Duration, Instant};

use larder_proto::grpc::control::control_client::ControlClient;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::config::Config;
use crate::socket::Connector;

/// Largest answer, bytes: 2,000 images of 30 layers at a kilobyte each. tonic's own limit, 4 MiB, would
/// be reached by a node with 130 of them.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long nobody may listen: what a start takes before it binds its socket, a tenth of a second, on a
/// machine that does much else. Who asks where there is no daemon waits as long.
const STARTING: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// The answer of the daemon that owns `root`. `ask` may be called again: where the connection fails,
/// nobody answers now, as after a socket was bound by systemd before there was a daemon.
pub(super) async fn asked<T, A>(root: &Path, ask: A) -> Result<T, Status>
where
    A: AsyncFn(ControlClient<Channel>) -> Result<Response<T>, Status>,
{
    let until = Instant::now() + STARTING;
    loop {
        let control = ControlClient::new(Connector::channel(Config::control(root)));
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
                tokio::time::sleep(Duration::from_millis(200)).await;
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
                took >= patience && took < patience + Duration::from_secs(1),
                "{took:?}"
            );
        }
    }
}
