# Sourced by launch/demo and launch/test: a virtual environment in the checkout, made once.
#
#   prepare_environment EXTRAS     leaves $root (the checkout) and $python (its interpreter)
#
# It is made again when pyproject.toml, the extras or the place of the checkout change. Nothing is written
# outside the checkout but pip's own cache; only the package index is asked.

say() { printf 'avq: %s\n' "$*" >&2; }

die() { say "$@"; exit 3; }

find_python() {
    local candidate
    for candidate in "${AVQ_PYTHON:-}" python3 python3.12 python3.11 python3.10 python3.13; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# pip wants a home it can write to; machines that build images often have none.
usable_home() {
    [ -n "${HOME:-}" ] && [ -d "$HOME" ] && [ -w "$HOME" ] && return
    mkdir -p "$root/.venv/home"
    export HOME="$root/.venv/home"
}

# One line that changes on a terminal, a line per package elsewhere.
show_progress() {
    local line
    while IFS= read -r line; do
        case "$line" in
            Collecting* | Downloading* | Building* | "Installing collected"*) ;;
            *) continue ;;
        esac
        if [ -t 2 ]; then printf '\r\033[K  %.76s' "$line" >&2; fi
    done
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

install_packages() {
    local log="$root/.venv/install.log"
    if ! "$python" -m pip install --disable-pip-version-check --no-input -e "$root[$1]" 2>&1 \
        | tee "$log" | show_progress; then
        tail -n 15 "$log" >&2
        die "installing failed; the whole log is in .venv/install.log. Is the package index reachable?"
    fi
}

prepare_environment() {
    local extras="$1" stamp wanted base
    set -o pipefail
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)" || exit 3
    python="$root/.venv/bin/python"
    unset PYTHONPATH PYTHONHOME PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX
    mkdir -p "$root/.venv" || die "cannot write to $root; copy the checkout to a folder of your own"
    usable_home
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$root/.venv/.lock" && flock 9
    fi
    stamp="$root/.venv/.installed-${extras//,/-}"
    wanted="$(cksum <"$root/pyproject.toml") $root"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ] || ! "$python" -c '' >/dev/null 2>&1; then
        base="$(find_python)" || die "Python 3.10 or newer with its venv module is needed" \
            "(Debian and Ubuntu: apt install python3-venv), or name one in AVQ_PYTHON"
        say "preparing .venv with $("$base" --version 2>&1), once; this takes some minutes"
        "$python" -c '' >/dev/null 2>&1 || "$base" -m venv "$root/.venv" || die "python -m venv failed"
        install_packages "$extras"
        printf '%s\n' "$wanted" >"$stamp"
        say "ready"
    fi
    if command -v flock >/dev/null 2>&1; then exec 9>&-; fi
    export PATH="$root/.venv/bin:$PATH"
}
