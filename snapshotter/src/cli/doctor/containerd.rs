//! What containerd is, and what its configuration says about us.

use std::path::Path;

use larder_proto::grpc::control::StatusResponse;
use toml::Value;
use tonic::Status;

use super::super::status;
use super::{Finding, Verdict};
use crate::config::Config;
use crate::containerd::Containerd;
use crate::install::imported;

/// CRI's section up to configuration version 2, and those of version 3.
const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
/// The snapshotter's name in the README's configuration, and what clients ask for by default.
const NAME: &str = "larder";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

pub(super) async fn look(config: &Config, file: &Path) -> Vec<Finding> {
    let version = version(config).await;
    let newer = matches!(&version, Ok((major, _)) if *major >= 2);
    let mut findings = vec![describe(version, config)];
    let mut name = NAME.to_owned();
    match imported::read(file) {
        Ok(table) => {
            let seen = file.display().to_string();
            findings.push(Finding::good("containerd configuration read", seen));
            let root = Value::Table(table);
            findings.extend(configuration(&root, config, newer));
            name = plugin_name(&root, config).unwrap_or(name);
        }
        Err(seen) => {
            let advice = format!("correct it; it needs:\n{}", plugin(config));
            findings.push(Finding::bad("containerd configuration", seen, advice));
        }
    }
    if findings[0].verdict != Verdict::Bad {
        findings.push(loaded(config, &name).await);
    }
    let status = status::ask(&config.root).await;
    findings.push(daemon(config, status.as_ref()));
    findings.extend(status.ok().map(snapshots));
    findings
}

/// Whether containerd and the daemon have the same snapshots, as the daemon tells.
fn snapshots(status: StatusResponse) -> Finding {
    let what = "snapshots";
    match status.disagreement {
        None => Finding::good(what, "nothing is known that only one side has"),
        Some(found) => {
            let (only_here, only_there) = (found.unknown, found.absent);
            let seen = format!(
                "{only_here} are here and not known to containerd, {only_there} are known to \
                 containerd and not here"
            );
            match only_there {
                0 => Finding::notice(what, seen, found.why),
                _ => Finding::bad(what, seen, found.why),
            }
        }
    }
}

/// Whether the containerd that runs has our snapshotter: its file may have been changed since it
/// was started.
async fn loaded(config: &Config, name: &str) -> Finding {
    use containerd_client::services::v1::PluginsRequest;
    use containerd_client::services::v1::introspection_client::IntrospectionClient;
    let what = "plugin in the running containerd";
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let mut client = IntrospectionClient::new(Containerd::new(config.containerd.clone()).channel());
    let plugins = match client.plugins(PluginsRequest { filters }).await {
        Ok(plugins) => plugins.into_inner().plugins,
        Err(status) => return Finding::notice(what, status.message(), "ask again"),
    };
    match plugins.iter().find(|plugin| plugin.id == name) {
        Some(_) => Finding::good(what, format!("it has the snapshotter {name}")),
        None => Finding::bad(
            what,
            format!("it does not have the snapshotter {name}"),
            "restart containerd: it reads its configuration when it starts",
        ),
    }
}

async fn version(config: &Config) -> Result<(u32, String), String> {
    use containerd_client::services::v1::version_client::VersionClient;
    let channel = Containerd::new(config.containerd.clone()).channel();
    let asked = VersionClient::new(channel).version(()).await;
    let version = asked
        .map_err(|status| status.message().to_owned())?
        .into_inner()
        .version;
    let major = version
        .trim_start_matches('v')
        .split('.')
        .next()
        .unwrap_or_default();
    Ok((major.parse().unwrap_or_default(), version))
}

fn describe(version: Result<(u32, String), String>, config: &Config) -> Finding {
    let what = "containerd";
    match version {
        Ok((1, version)) => {
            let advice = "`ctr pull` of 1.x downloads first: pull with larder-snapshotter pull REF";
            Finding::notice(what, version, advice)
        }
        Ok((_, version)) => Finding::good(what, version),
        Err(error) => {
            let seen = format!("no answer at {}: {error}", config.containerd.display());
            let advice = "start containerd, or name its socket as address under [containerd] in \
                          larder-snapshotter's configuration";
            Finding::bad(what, seen, advice)
        }
    }
}

/// Judges containerd's configuration.
fn configuration(root: &Value, config: &Config, newer: bool) -> Vec<Finding> {
    let mut findings = vec![proxy(root, config)];
    let Some(name) = plugin_name(root, config) else {
        return findings;
    };
    findings.push(cri(root, &name));
    if newer {
        findings.push(transfer(root, &name));
    }
    findings
}

/// The proxy plugin whose address is ours.
fn plugin_name(root: &Value, config: &Config) -> Option<String> {
    let plugins = root.get("proxy_plugins")?.as_table()?;
    let address = config.address.to_str();
    let ours = |plugin: &Value| plugin.get("address").and_then(Value::as_str) == address;
    plugins
        .iter()
        .find(|(_, plugin)| ours(plugin))
        .map(|(name, _)| name.clone())
}

fn proxy(root: &Value, config: &Config) -> Finding {
    let what = "proxy plugin";
    let Some(name) = plugin_name(root, config) else {
        let seen = format!(
            "no proxy plugin has the address {}",
            config.address.display()
        );
        return Finding::bad(what, seen, format!("add:\n{}", plugin(config)));
    };
    let plugin = &root["proxy_plugins"][name.as_str()];
    let capabilities = plugin.get("capabilities").and_then(Value::as_array);
    if capabilities.is_some_and(|all| all.iter().any(|one| one.as_str() == Some("rebase"))) {
        let advice = "remove \"rebase\" from capabilities: pulled images would lose layers";
        return Finding::bad(what, format!("{name} claims the capability rebase"), advice);
    }
    let export = plugin
        .get("exports")
        .and_then(|exports| exports.get("root"));
    if export.and_then(Value::as_str) != config.root.to_str() {
        let advice = format!(
            "add:\n[proxy_plugins.{name}.exports]\n  root = \"{}\"",
            config.root.display()
        );
        let seen =
            format!("{name} does not export the root directory: kubelet cannot see its disk");
        return Finding::notice(what, seen, advice);
    }
    Finding::good(what, name)
}

fn cri(root: &Value, name: &str) -> Finding {
    let what = "CRI";
    let plugins = root.get("plugins");
    let section = |key: &str| plugins.and_then(|plugins| plugins.get(key));
    let is_new = root.get("version").and_then(Value::as_integer) >= Some(3);
    let place = if is_new {
        format!("[plugins.\"{CRI_IMAGES}\"]")
    } else {
        format!("[plugins.\"{CRI}\".containerd]")
    };
    let lines =
        format!("{place}\n  snapshotter = \"{name}\"\n  disable_snapshot_annotations = false");
    let old = section(CRI).and_then(|cri| cri.get("containerd"));
    if is_new && old.is_some() {
        let seen = format!("a file of version 3 has no {CRI}: containerd ignores it");
        return Finding::bad(what, seen, format!("say instead:\n{lines}"));
    }
    let Some(table) = old.or(section(CRI_IMAGES)) else {
        let advice = format!("for Kubernetes, add:\n{lines}");
        return Finding::notice(what, "not configured to use it", advice);
    };
    if table.get("snapshotter").and_then(Value::as_str) != Some(name) {
        let advice = format!("for Kubernetes, set:\n{lines}");
        return Finding::notice(what, "uses another snapshotter", advice);
    }
    if old.is_some_and(|old| old.get("runtimes").is_none()) {
        let advice = format!(
            "add, or containerd 2.x drops the lines above:\n[plugins.\"{CRI}\".containerd.runtimes.runc]\n  \
             runtime_type = \"io.containerd.runc.v2\""
        );
        return Finding::notice(what, "no runtimes table", advice);
    }
    Finding::good(what, format!("uses {name}"))
}

fn transfer(root: &Value, name: &str) -> Finding {
    let what = "transfer service";
    let configs = root
        .get("plugins")
        .and_then(|plugins| plugins.get(TRANSFER));
    let configs = configs.and_then(|transfer| transfer.get("unpack_config"));
    let configs = configs.and_then(Value::as_array);
    let ours = |entry: &Value| entry.get("snapshotter").and_then(Value::as_str) == Some(name);
    if configs.is_some_and(|configs| configs.iter().any(ours)) {
        return Finding::good(what, format!("unpacks with {name}"));
    }
    let entry = |name: &str| {
        format!(
            "[[plugins.\"{TRANSFER}\".unpack_config]]\n  platform = \"linux\"\n  \
             snapshotter = \"{name}\"\n  differ = \"walking\""
        )
    };
    let advice = format!("add:\n{}\n{}", entry("overlayfs"), entry(name));
    Finding::bad(
        what,
        "`ctr pull` fails: no unpack platforms defined",
        advice,
    )
}

fn plugin(config: &Config) -> String {
    format!(
        "[proxy_plugins.larder]\n  type = \"snapshot\"\n  address = \"{}\"\n  \
         [proxy_plugins.larder.exports]\n    root = \"{}\"\n    \
         enable_remote_snapshot_annotations = \"true\"",
        config.address.display(),
        config.root.display()
    )
}

/// Whether there is a daemon where containerd looks for it, and whether it answers.
fn daemon(config: &Config, status: Result<&StatusResponse, &Status>) -> Finding {
    let what = "daemon";
    let seen = config.address.display().to_string();
    if let Err(error) = std::os::unix::net::UnixStream::connect(&config.address) {
        let advice = "start larder-snapshotter run, before containerd";
        return Finding::bad(what, format!("connect to {seen}: {error}"), advice);
    }
    match status {
        Ok(_) => Finding::good(what, seen),
        Err(refused) => {
            let advice = status::refused_by(&config.root, refused, "--config");
            Finding::bad(
                what,
                format!("{seen} is there and no daemon answers"),
                advice.to_string(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;
    use crate::config::Overrides;

    /// The block of docs/CONFIGURATION.md that users copy.
    fn documented() -> String {
        let text = include_str!("../../../../docs/CONFIGURATION.md");
        let block = text.split("```toml\n").nth(1).unwrap();
        block.split("```").next().unwrap().to_owned()
    }

    fn verdicts(text: &str) -> Vec<(&'static str, Verdict)> {
        let config = Config::load(None, &Overrides::default()).unwrap();
        let root = Value::Table(text.parse().unwrap());
        let findings = configuration(&root, &config, true);
        findings
            .into_iter()
            .map(|finding| (finding.what, finding.verdict))
            .collect()
    }

    /// Promise: the documented block is one the doctor has nothing to say about.
    #[test]
    fn the_documented_block_is_well() {
        let verdicts = verdicts(&documented());
        assert_eq!(verdicts.len(), 3);
        assert!(
            verdicts
                .iter()
                .all(|(_, verdict)| *verdict == Verdict::Good),
            "{verdicts:?}"
        );
    }

    #[test]
    fn each_missing_part_is_named() {
        let block = documented();
        for (remove, what, expected) in [
            ("/run/larder/larder.sock", "proxy plugin", Verdict::Bad),
            ("/var/lib/larder", "proxy plugin", Verdict::Notice),
            ("runtimes.runc", "CRI", Verdict::Notice),
            ("unpack_config", "transfer service", Verdict::Bad),
        ] {
            let verdicts = verdicts(&block.replace(remove, "other"));
            assert!(
                verdicts.contains(&(what, expected)),
                "{remove}: {verdicts:?}"
            );
        }
        let rebase = block.replace(
            "type = \"snapshot\"",
            "type = \"snapshot\"\n  capabilities = [\"rebase\"]",
        );
        assert!(verdicts(&rebase).contains(&("proxy plugin", Verdict::Bad)));
    }

    /// Promise: tables that containerd ignores in a file of version 3 are not taken for settings.
    #[test]
    fn a_file_of_version_3_has_other_tables() {
        let block = documented().replace("version = 2", "version = 3");
        assert!(verdicts(&block).contains(&("CRI", Verdict::Bad)));
        let new = format!(
            "version = 3\n[plugins.\"{CRI_IMAGES}\"]\nsnapshotter = \"larder\"\n{}",
            &block[block.find("[[plugins").unwrap()..]
        );
        assert!(
            verdicts(&new)
                .iter()
                .all(|(_, verdict)| *verdict == Verdict::Good)
        );
    }
}
