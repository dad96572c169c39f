//! A small client of Kubernetes' container runtime interface: what the tests of a node ask containerd for as a kubelet
//! would. `cri SOCKET COMMAND…` prints the id or the output; see [`run`] for the commands.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// Package `runtime.v1`.
#[expect(
    clippy::allow_attributes,
    clippy::trivially_copy_pass_by_ref,
    unreachable_pub,
    reason = "generated code"
)]
mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Seconds for a command in a container, and for one to end before it is killed.
const EXEC_SECONDS: i64 = 60;
const STOP_SECONDS: i64 = 0;

const USAGE: &str = "cri SOCKET \
    pull IMAGE | images | remove-image IMAGE | run-pod NAME LOGS | stop-pod POD | remove-pod POD | \
    create POD NAME LOGS IMAGE USER [COMMAND]... | start CONTAINER | stop CONTAINER | remove CONTAINER | \
    exec CONTAINER COMMAND...";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cri: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[&str]) -> anyhow::Result<ExitCode> {
    let [socket, command @ ..] = words else {
        bail!("usage: {USAGE}");
    };
    let endpoint = Endpoint::from_shared(format!("unix:{socket}"))?;
    let connected = endpoint.connect().await;
    let channel = connected.with_context(|| format!("connecting to {socket}"))?;
    let said = match command {
        ["exec", container, command @ ..] => return exec(channel, container, command).await,
        ["pull" | "images" | "remove-image", ..] => images(channel, command).await?,
        ["run-pod" | "stop-pod" | "remove-pod", ..] => pods(channel, command).await?,
        _ => containers(channel, command).await?,
    };
    println!("{said}");
    Ok(ExitCode::SUCCESS)
}

async fn images(channel: Channel, command: &[&str]) -> anyhow::Result<String> {
    let mut service = ImageServiceClient::new(channel);
    match command {
        ["pull", name] => {
            let image = Some(image(name));
            let answer = service.pull_image(cri::PullImageRequest { image }).await?;
            Ok(answer.into_inner().image_ref)
        }
        ["images"] => {
            let listed = service.list_images(cri::ListImagesRequest {}).await?;
            let images = listed.into_inner().images.into_iter();
            let tags: Vec<_> = images.flat_map(|image| image.repo_tags).collect();
            Ok(tags.join("\n"))
        }
        ["remove-image", name] => {
            let image = Some(image(name));
            service
                .remove_image(cri::RemoveImageRequest { image })
                .await?;
            Ok(String::new())
        }
        _ => bail!("usage: {USAGE}"),
    }
}

async fn pods(channel: Channel, command: &[&str]) -> anyhow::Result<String> {
    let mut service = RuntimeServiceClient::new(channel);
    match command {
        ["run-pod", name, logs] => {
            let config = Some(pod(name, logs));
            let request = cri::RunPodSandboxRequest { config };
            let answer = service.run_pod_sandbox(request).await?;
            return Ok(answer.into_inner().pod_sandbox_id);
        }
        ["stop-pod", id] => {
            let pod_sandbox_id = (*id).to_owned();
            let request = cri::StopPodSandboxRequest { pod_sandbox_id };
            service.stop_pod_sandbox(request).await?;
        }
        ["remove-pod", id] => {
            let pod_sandbox_id = (*id).to_owned();
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id };
            service.remove_pod_sandbox(request).await?;
        }
        _ => bail!("usage: {USAGE}"),
    }
    Ok(String::new())
}

async fn containers(channel: Channel, command: &[&str]) -> anyhow::Result<String> {
    let mut service = RuntimeServiceClient::new(channel);
    match command {
        ["create", id, name, logs, image, user, command @ ..] => {
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: (*id).to_owned(),
                config: Some(container(name, image, user, command)?),
                sandbox_config: Some(pod(name, logs)),
            };
            let answer = service.create_container(request).await?;
            return Ok(answer.into_inner().container_id);
        }
        ["start", id] => {
            let container_id = (*id).to_owned();
            let request = cri::StartContainerRequest { container_id };
            service.start_container(request).await?;
        }
        ["stop", id] => {
            let request = cri::StopContainerRequest {
                container_id: (*id).to_owned(),
                timeout: STOP_SECONDS,
            };
            service.stop_container(request).await?;
        }
        ["remove", id] => {
            let container_id = (*id).to_owned();
            let request = cri::RemoveContainerRequest { container_id };
            service.remove_container(request).await?;
        }
        _ => bail!("usage: {USAGE}"),
    }
    Ok(String::new())
}

/// Prints what the command printed and ends as it ended.
async fn exec(channel: Channel, container: &str, command: &[&str]) -> anyhow::Result<ExitCode> {
    let request = cri::ExecSyncRequest {
        container_id: container.to_owned(),
        cmd: owned(command),
        timeout: EXEC_SECONDS,
    };
    let answer = RuntimeServiceClient::new(channel)
        .exec_sync(request)
        .await?
        .into_inner();
    std::io::stdout().write_all(&answer.stdout)?;
    std::io::stderr().write_all(&answer.stderr)?;
    let code = u8::try_from(answer.exit_code).context("exit code")?;
    Ok(ExitCode::from(code))
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn image(name: &str) -> cri::ImageSpec {
    let image = name.to_owned();
    cri::ImageSpec { image }
}

/// Pods and containers use the node's network: there is no other here.
fn on_the_host() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
    }
}

fn pod(name: &str, logs: &str) -> cri::PodSandboxConfig {
    let security_context = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(on_the_host()),
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: name.to_owned(),
            namespace: "tests".to_owned(),
            attempt: 0,
        }),
        log_directory: logs.to_owned(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(security_context),
        }),
    }
}

/// `user` is a number; the log is `NAME.log` in the pod's folder.
fn container(
    name: &str,
    of: &str,
    user: &str,
    command: &[&str],
) -> anyhow::Result<cri::ContainerConfig> {
    let value = user.parse().with_context(|| format!("user {user}"))?;
    let security_context = cri::LinuxContainerSecurityContext {
        namespace_options: Some(on_the_host()),
        run_as_user: Some(cri::Int64Value { value }),
    };
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(image(of)),
        command: owned(command),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(security_context),
        }),
    })
}
