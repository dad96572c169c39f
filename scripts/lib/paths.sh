# Where the scripts keep things and how they speak. Sourced, after `set -euo pipefail`.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Images, unpacked containerd versions and the like: worth keeping, safe to delete. Outside the repository.
export LARDER_CACHE=${LARDER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/larder}
mkdir -p "$LARDER_CACHE"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "run it as root: it mounts file systems and installs packages"; }

# Where cargo puts the programs of a profile.
profile_directory() { printf '%s/%s' "${CARGO_TARGET_DIR:-$top/target}" "$([ "$1" = dev ] && echo debug || echo "$1")"; }
