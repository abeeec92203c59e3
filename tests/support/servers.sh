# Sourced by the scripts beside the tests: job servers of their own, and an end that leaves nothing behind.

folder=$(mktemp -d)
# No other process uses this loopback address, so its ports are free.
host=127.$((64 + ($$ >> 16 & 63))).$(($$ >> 8 & 255)).$(($$ & 255))
started=()

clean_up() {
    local pid
    for pid in "${started[@]}"; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

# wait_until COMMAND...: until it succeeds, half a minute at most.
wait_until() {
    local tries
    for ((tries = 0; tries < 1500; tries++)); do
        "$@" && return
        sleep 0.02
    done
    echo "still not so after half a minute: $*" >&2
    return 1
}

# start_gearmand PORT: a job server on $host, killed at the end.
start_gearmand() {
    gearmand --listen="$host" --port="$1" --threads=1 --log-file=stderr --pid-file="$folder/$1.pid" \
        </dev/null >"$folder/gearmand-$1.log" 2>&1 &
    started+=($!)
    wait_until answers "$1"
}

answers() { gearadmin --host="$host" --port="$1" --server-version >/dev/null 2>&1; }

# queue_is PORT QUEUE TOTAL RUNNING WORKERS: as the server's status shows it.
queue_is() { gearadmin --host="$host" --port="$1" --status | grep -qP "^$2\t$3\t$4\t$5\$"; }

# at PORT OPTIONS...: libgearman's client and worker.
at() { gearman -h "$host" -p "$@"; }

# start_worker PORT QUEUE COMMAND...: answers each job with what the command makes of it; killed at the end.
start_worker() {
    gearman -h "$host" -p "$1" -w -f "$2" -- "${@:3}" </dev/null >/dev/null 2>&1 &
    started+=($!)
}
