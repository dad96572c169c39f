# Debian packages: into the machine, or unpacked beside it. Sourced, after paths.sh.

# The Debian mirror of this machine's own apt configuration, and the apt settings a container needs to reach it.
apt_mirror() {
    local uri
    uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "bookworm" { print $1; exit }')
    printf '%s\n' "${uri:-http://deb.debian.org/debian/}"
}
apt_settings() { apt-config dump | grep -E '^Acquire::(http|https|ftp|Retries|Check-|ForceIPv)[^"]* ".+";$' || true; }

# Installs the packages of "$@" that are missing, and starts no service. A package's daemon would otherwise
# start on install: policy-rc.d forbids that while apt runs and is put back as it was.
apt_install() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "missing packages: ${missing[*]}. Run scripts/setup as root"
    say "installing ${missing[*]}"
    (
        policy=/usr/sbin/policy-rc.d
        kept=$(mktemp -d)
        [ ! -e "$policy" ] || mv "$policy" "$kept/policy"
        trap 'rm -f "$policy"; [ ! -e "$kept/policy" ] || mv "$kept/policy" "$policy"; rm -rf "$kept"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        export DEBIAN_FRONTEND=noninteractive
        set -- -y -qq -o Dpkg::Use-Pty=0 install --no-install-recommends --no-remove "${missing[@]}"
        # The package lists of a fresh machine are missing or old; only then is an update worth its time.
        apt-get "$@" >"$kept/log" 2>&1 ||
            { apt-get -q update >>"$kept/log" 2>&1 && apt-get "$@" >>"$kept/log" 2>&1; } ||
            { tail -n 40 "$kept/log" >&2; exit 1; }
    ) || die "apt-get could not install: ${missing[*]}"
}

# apt_unpack SUITE DIR PACKAGE...: downloads packages of another Debian release through a private apt
# configuration, unpacks them into DIR and writes their versions to DIR/versions. The machine's packages stay untouched.
apt_unpack() {
    local suite=$1 dir=$2 work
    shift 2
    [ ! -e "$dir/versions" ] || return 0
    say "fetching $* of Debian $suite"
    work=$(mktemp -d)
    mkdir -p "$work"/{lists/partial,archives/partial,etc,debs,root}
    apt_settings >"$work/etc/apt.conf"
    cat >>"$work/etc/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
Dir::Cache::archives "$work/archives";
APT::Architecture "$(dpkg --print-architecture)";
APT::Architectures "$(dpkg --print-architecture)";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
    : >"$work/status"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$(apt_mirror)" "$suite" \
        >"$work/etc/sources.list"
    (
        export APT_CONFIG=$work/etc/apt.conf
        apt-get -qq update >&2
        cd "$work/debs" && apt-get -qq download "$@" >&2
    ) || { rm -rf "$work"; die "cannot fetch $* of Debian $suite from $(apt_mirror)"; }
    local deb
    for deb in "$work"/debs/*.deb; do
        dpkg-deb -x "$deb" "$work/root"
        dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb" >>"$work/root/versions"
    done
    rm -rf "$dir"
    mkdir -p "$(dirname "$dir")"
    mv "$work/root" "$dir"
    rm -rf "$work"
}
