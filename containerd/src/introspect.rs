//! What containerd says of itself, and a listing of the snapshots that it has of one snapshotter.

use std::path::Path;

use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{ListNamespacesRequest, PluginsRequest};
use larder_proto::grpc::snapshots::ListSnapshotsRequest;
use larder_proto::grpc::snapshots::snapshots_client::SnapshotsClient;

use super::session::CallError;
use super::{Containerd, within};

impl Containerd {
    /// What containerd calls its root directory: another name after that was wiped or exchanged.
    pub async fn identity(&self) -> Result<String, CallError> {
        let asked = IntrospectionClient::new(self.channel()).server(()).await;
        let server = asked.map_err(CallError::of("ask which containerd this is"))?;
        Ok(server.into_inner().uuid)
    }

    /// The name under which containerd has the snapshotter that listens at `socket`, if it has.
    pub async fn snapshotter_at(&self, socket: &Path) -> Result<Option<String>, CallError> {
        let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
        let mut client = IntrospectionClient::new(self.channel());
        let plugins = client.plugins(PluginsRequest { filters }).await;
        let plugins = plugins.map_err(CallError::of("ask for its snapshotters"))?;
        let socket = socket.to_str();
        let ours = plugins.into_inner().plugins.into_iter().find(|plugin| {
            let address = plugin.exports.get("address").map(String::as_str);
            address.is_some() && address == socket
        });
        Ok(ours.map(|plugin| plugin.id))
    }

    /// The names of all namespaces.
    pub async fn namespaces(&self) -> Result<Vec<String>, CallError> {
        let filter = String::new();
        let mut client = NamespacesClient::new(self.channel());
        let listed = client.list(ListNamespacesRequest { filter }).await;
        let listed = listed.map_err(CallError::of("list namespaces"))?;
        let namespaces = listed.into_inner().namespaces.into_iter();
        Ok(namespaces.map(|namespace| namespace.name).collect())
    }

    /// How many snapshots of `snapshotter` containerd has in `namespace` and finds there. For each that
    /// it has, it asks the snapshotter (`Stat`) while it lists.
    pub async fn count_snapshots(
        &self,
        namespace: &str,
        snapshotter: &str,
    ) -> Result<usize, CallError> {
        let doing = format!("list the snapshots of namespace {namespace}");
        let message = ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            ..ListSnapshotsRequest::default()
        };
        let request = within(namespace, message).map_err(CallError::of(&doing))?;
        let pages = SnapshotsClient::new(self.channel()).list(request).await;
        let mut pages = pages.map_err(CallError::of(&doing))?.into_inner();
        let mut count = 0;
        while let Some(page) = pages.message().await.map_err(CallError::of(&doing))? {
            count += page.info.len();
        }
        Ok(count)
    }
}
