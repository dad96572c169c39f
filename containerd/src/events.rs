//! Publishing events through containerd, where `ctr events` and whoever subscribes sees them.

use std::collections::HashMap;

use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{ImageUpdate, PublishRequest};

use super::session::CallError;
use super::{Containerd, within};

impl Containerd {
    /// Publishes in `namespace` that something about the image `name` is now as `labels` say.
    ///
    /// It goes out as containerd's own event of an image that was updated, because subscribers can
    /// decode only types that containerd knows; the topic tells it from one. Topics begin with a
    /// slash.
    pub async fn publish(
        &self,
        namespace: &str,
        topic: &str,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), CallError> {
        let doing = format!("publish {topic}");
        let event = ImageUpdate {
            name: name.to_owned(),
            labels,
        };
        let message = PublishRequest {
            topic: topic.to_owned(),
            event: Some(containerd_client::to_any(&event)),
        };
        let request = within(namespace, message).map_err(CallError::of(&doing))?;
        let published = EventsClient::new(self.channel()).publish(request).await;
        published.map(drop).map_err(CallError::of(&doing))
    }
}
