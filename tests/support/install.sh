# Sourced by the scripts beside the tests: what they need on the machine, and how it gets there.

# Debian keeps gearmand where only root's PATH looks.
PATH=$PATH:/usr/sbin

require_cargo() {
    if ! command -v cargo >/dev/null; then
        echo "cargo is not in PATH: this needs Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer." >&2
        echo "https://rustup.rs installs it; if it is installed already: . ~/.cargo/env" >&2
        exit 1
    fi
}

# install_missing COMMAND=PACKAGE...: installs the packages whose command is not there.
install_missing() {
    local pair packages=() as_root=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    if [[ " $* " == *" perl="* ]] && ! perl -MGearman::Client -e1 2>/dev/null; then
        packages+=(libgearman-client-perl)
    fi
    [ ${#packages[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        echo "missing, and only root may install it with apt-get: ${packages[*]}" >&2
        exit 1
    fi
    echo "installing ${packages[*]}"
    "${as_root[@]}" apt-get -qq update </dev/null
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${packages[@]}" </dev/null >/dev/null
}
