#!/bin/sh
# Names everything this machine lacks to build and run, at once, with one line that installs it.
#
# Runs before anything is downloaded, on a bare system: POSIX sh and coreutils only.
# PYTHON and CXX choose the interpreter and the compiler, as in make.

set -u
PYTHON=${PYTHON:-python3}
missing=""  # what to tell
packages="" # what to install, in our own words: see package_name

lacks() { # DESCRIPTION PACKAGE...
    missing="$missing  - $1
"
    shift
    for package in "$@"; do
        case " $packages " in
        *" $package "*) ;;
        *) packages="$packages $package" ;;
        esac
    done
}

refuse() {
    printf '%s\n' "preflight: $1" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# --- the machine -----------------------------------------------------------------------------

system=$(uname -s)
processor=$(uname -m)
[ "$system" = Linux ] ||
    refuse "this runs on Linux (x86_64 or aarch64) only; this is $system. A Linux container or virtual machine will do."
case $processor in
x86_64 | aarch64) ;;
*) refuse "this runs on x86_64 and aarch64 only; this is $processor." ;;
esac

# --- Python ----------------------------------------------------------------------------------

include=""
if ! has "$PYTHON"; then
    lacks "$PYTHON (Python 3.11 or newer)" python venv headers
elif ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    found=$("$PYTHON" --version 2>/dev/null | head -n 1)
    lacks "Python 3.11 or newer ($PYTHON is ${found:-not working}); or choose another: make PYTHON=…" \
        newer_python newer_venv newer_headers
else
    "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        lacks "python3-venv (modules venv and ensurepip of $PYTHON)" venv
    include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    if [ ! -f "$include/Python.h" ]; then
        lacks "python3-dev (no $include/Python.h)" headers
        include=""
    fi
fi

# --- the compiler ----------------------------------------------------------------------------

compiler=""
if [ -n "${CXX:-}" ]; then
    # It may be several words: "ccache g++".
    has "${CXX%% *}" && compiler=$CXX
else
    for candidate in c++ g++ clang++; do
        has "$candidate" && compiler=$candidate && break
    done
fi
if [ -z "$compiler" ]; then
    lacks "a C++20 compiler (looked for ${CXX:-c++, g++, clang++})" compiler
else
    # Not the version but the thing itself: compile and link what we use of C++20, with Python.h.
    trial=$(mktemp -d) || refuse "no temporary folder can be made in ${TMPDIR:-/tmp}"
    trap 'rm -rf "$trial"' EXIT
    {
        [ -z "$include" ] || echo '#include <Python.h>'
        cat <<'PROGRAM'
#include <atomic>
#include <bit>
#include <concepts>
#include <cstdint>
#include <span>
#include <thread>
template <std::unsigned_integral T>
constexpr int width(std::span<const T> values) { return std::bit_width(values[0]); }
int main() {
    const std::uint32_t one[] = {1};
    std::atomic<int> flag{0};
    std::jthread other([&] { flag.store(width(std::span<const std::uint32_t>(one))); flag.notify_one(); });
    flag.wait(0);
    return flag.load() - 1;
}
PROGRAM
    } >"$trial/trial.cpp"
    # shellcheck disable=SC2086 # the compiler may be several words
    if ! $compiler -std=c++20 -pthread ${include:+"-I$include"} "$trial/trial.cpp" \
        -o "$trial/trial" >"$trial/messages" 2>&1; then
        lacks "a C++20 compiler ($compiler does not compile a small C++20 program: $(
            grep -m 1 -i error "$trial/messages" || head -n 1 "$trial/messages"
        ))" compiler
    fi
fi

has make || lacks "make" make

[ -n "$missing" ] || exit 0

# --- one line for all of it ------------------------------------------------------------------

# A versioned interpreter has versioned packages.
case ${PYTHON##*/} in
python3.[0-9]*) python=${PYTHON##*/} ;;
*) python=python3 ;;
esac

package_name() { # FAMILY THING
    case $1:$2 in
    *:python) echo "$python" ;;
    *:newer_python) echo python3.12 ;;
    debian:venv) echo "$python-venv" ;;
    debian:newer_venv) echo python3.12-venv ;;
    debian:headers) echo "$python-dev" ;;
    debian:newer_headers) echo python3.12-dev ;;
    fedora:venv | fedora:newer_venv) ;; # part of the interpreter's own package
    fedora:headers) echo "$python-devel" ;;
    fedora:newer_headers) echo python3.12-devel ;;
    debian:compiler) echo g++ ;;
    fedora:compiler) echo gcc-c++ ;;
    *:make) echo make ;;
    esac
}

install_line() { # FAMILY COMMAND
    line=$2
    for thing in $packages; do
        name=$(package_name "$1" "$thing")
        line="$line${name:+ $name}"
    done
    printf '%s' "$line"
}

sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo "
{
    printf 'preflight: missing on this machine:\n%s' "$missing"
    echo "Install with one line, then run the same command again:"
    if has apt-get; then
        echo "  $(install_line debian "${sudo}apt-get update && ${sudo}apt-get install -y")"
    elif has dnf; then
        echo "  $(install_line fedora "${sudo}dnf install -y")"
    else
        echo "  $(install_line debian "apt-get update && apt-get install -y")   (Debian, Ubuntu)"
        echo "  $(install_line fedora "dnf install -y")   (Fedora, RHEL)"
    fi
} >&2
exit 1
