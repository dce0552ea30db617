#!/bin/sh
# Tries a make target on a bare Debian: a new minimal root, the preflight's message, its one line, make.
#
#   sudo sh tools/bare_root.sh FOLDER [TARGET...]        FOLDER must not exist; TARGET: train
#
# The root is like a machine that has nothing but this source tree. What this machine knows of the
# network (apt's sources, pip's settings, names, certificates, proxies) is passed on, so nothing of
# that stands here. FOLDER is removed at the end; KEEP=1 leaves it for a look.

set -eu

[ $# -ge 1 ] || {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
root=$1
shift
[ $# -gt 0 ] || set -- train
tree=$(cd "$(dirname "$0")/.." && pwd)

stop() {
    printf 'bare_root: %s\n' "$1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || stop "chroot needs root"
[ ! -e "$root" ] || stop "$root exists"
command -v debootstrap >/dev/null || stop "needs debootstrap: apt-get install -y debootstrap"

# --- leave nothing mounted, whatever happens -----------------------------------------------------

mounted=""
tidy() {
    for place in $mounted; do # the last first
        umount "$place" || umount -l "$place" || true
    done
    mounted=""
    # Never delete through a mount that would not go away.
    if [ -z "${KEEP:-}" ] && ! grep -q " $root/" /proc/mounts; then
        rm -rf "$root"
    fi
}
trap tidy EXIT
trap 'exit 130' INT TERM

lend() { # PATH: this machine's file or folder, at the same place, a folder read-only
    if [ -f "$1" ]; then
        mkdir -p "$root$(dirname "$1")"
        cp -L "$1" "$root$1"
    elif [ -d "$1" ] && [ ! -e "$root$1" ]; then
        mkdir -p "$root$1"
        mount --bind -o ro "$1" "$root$1"
        mounted="$root$1 $mounted"
    fi
}

# --- a minimal root ------------------------------------------------------------------------------

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Codename: $suite" | head -n 1)
mkdir -p "$root"
root=$(cd "$root" && pwd)
echo "== a bare Debian $suite in $root"
log=$(mktemp)
debootstrap --variant=minbase "$suite" "$root" ${mirror:+"$mirror"} >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    stop "debootstrap failed"
}
rm -f "$log"

rm -rf "$root/etc/apt/sources.list" "$root/etc/apt/sources.list.d"
cp -a /etc/apt/sources.list* "$root/etc/apt/" 2>/dev/null || true
cp -a /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/" 2>/dev/null || true
for settings in /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
    if [ -f "$settings" ]; then
        # Its home folder there is /root.
        place=$root$(printf '%s' "$settings" | sed "s|^$HOME|/root|")
        mkdir -p "$(dirname "$place")"
        cp "$settings" "$place"
    fi
done
mount -t proc proc "$root/proc"
mounted="$root/proc $mounted"
mount --bind /dev "$root/dev"
mounted="$root/dev $mounted"
mount --make-private "$root/dev" # lest what comes below appears in this machine's own /dev
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts" # terminals
mounted="$root/dev/pts $mounted"
mount -t tmpfs -o size=64m tmpfs "$root/dev/shm" # as small as in a container
mounted="$root/dev/shm $mounted"

# --- the source tree and nothing else ------------------------------------------------------------

mkdir "$root/repo"
(cd "$tree" && git ls-files -z --cached --others --exclude-standard |
    tar --create --null --files-from=- --ignore-failed-read) | tar --extract --directory "$root/repo"

inside() { # COMMAND: with the network's variables and no others
    (
        for name in $(env | sed -n 's/^\([A-Za-z_]*\)=.*/\1/p'); do
            case $name in
            PIP_* | *_proxy | *_PROXY | SSL_CERT_FILE | RANKS | TRAIN_OPTIONS) ;;
            *) unset "$name" 2>/dev/null || true ;;
            esac
        done
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        HOME=/root
        DEBIAN_FRONTEND=noninteractive
        export PATH HOME DEBIAN_FRONTEND
        exec chroot "$root" sh -c "cd /repo && $1" </dev/null
    )
}

echo "== sh tools/preflight.sh"
if message=$(inside "sh tools/preflight.sh" 2>&1); then
    stop "the preflight found nothing missing on a bare Debian"
fi
printf '%s\n' "$message"
line=$(printf '%s\n' "$message" | sed -n 's/^  \(.*install -y .*\)/\1/p')
[ -n "$line" ] || stop "the preflight gave no line to install with"

echo "== $line"
if ! inside "$line" >"$root/install.log" 2>&1; then
    tail -n 20 "$root/install.log" >&2
    stop "the preflight's line failed"
fi
tail -n 1 "$root/install.log"

# Folders of packages and certificates that pip's settings name; only now, since the installation
# writes some itself.
named=$({
    cat /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" 2>/dev/null || true
    env | grep '^PIP_' || true
} | tr ' =' '\n\n' | sed -n 's|^file://||; s|^\(/[^ ]*\)$|\1|p' | sort -u)
for path in $named; do
    case $path in
    # All of it: an index's pages refer to files beside it.
    /mnt/* | /opt/* | /srv/*) lend "$(printf '%s' "$path" | cut -d / -f 1-3)" ;;
    /etc/*) lend "$path" ;;
    esac
done

echo "== make $*"
inside "make $*"
