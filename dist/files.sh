# Sourced by the scripts that make packages and the release archive: what is installed where, as which version.

export LC_ALL=C TZ=UTC
umask 022

version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

# The commit's time: what is made from the same sources is the same byte for byte. `git archive` gives it to files.
if [ -z "${SOURCE_DATE_EPOCH-}" ]; then
    SOURCE_DATE_EPOCH=$([ -e .git ] && git log -1 --format=%ct || stat --format=%Y Cargo.toml)
fi
export SOURCE_DATE_EPOCH

# architecture BINARY: x86_64 or aarch64.
architecture() {
    case $(readelf --file-header "$1" | sed -n 's/^ *Machine: *//p') in
    *X86-64) echo x86_64 ;;
    AArch64) echo aarch64 ;;
    *)
        echo "$1: packages are made for x86_64 and aarch64" >&2
        return 1
        ;;
    esac
}

# install_files ROOT BINARY: what every package holds, below ROOT.
install_files() {
    local root=$1 binary=$2 doc=usr/share/doc/gearman-proxy page
    install -D -m 755 "$binary" "$root/usr/bin/gearman-proxy"
    install -D -m 755 dist/gearman-proxy-convert "$root/usr/bin/gearman-proxy-convert"
    install -D -m 640 dist/proxy.conf "$root/etc/gearman-proxy/proxy.conf"
    install -D -m 644 dist/gearman-proxy.service "$root/usr/lib/systemd/system/gearman-proxy.service"
    install -D -m 644 dist/before-systemd-253.conf "$root/usr/share/gearman-proxy/before-systemd-253.conf"
    install -D -m 644 dist/sysusers.d/gearman-proxy.conf "$root/usr/lib/sysusers.d/gearman-proxy.conf"
    for page in dist/gearman-proxy*.[1-9]; do
        install -d "$root/usr/share/man/man${page##*.}"
        gzip -9 -n <"$page" >"$root/usr/share/man/man${page##*.}/$(basename "$page").gz"
    done
    install -d "$root/$doc/examples"
    install -m 644 README.md CHANGELOG.md "$root/$doc"
    for page in SECURITY.md docs/*; do
        [ ! -f "$page" ] || install -D -m 644 "$page" "$root/$doc/$page"
    done
    install -m 644 config.example dist/logrotate dist/grafana.json dist/alerts.yml "$root/$doc/examples"
    install -m 755 dist/sysv-init dist/omd-init "$root/$doc/examples"
    dist/sbom "$(architecture "$binary")-unknown-linux-musl" >"$root/$doc/gearman-proxy.cdx.json"
}

# same_times FOLDER: no file in it is younger than the commit.
same_times() {
    find "$1" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}
