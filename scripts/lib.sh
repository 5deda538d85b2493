# shellcheck shell=bash
# What the scripts share. To be sourced; for bash 3.2 and newer, because that is what macOS has.

# --- Saying things -------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}

# step NAME COMMAND...: runs the command and prints how long it took. Its status is the command's.
step() {
    local name=$1 began=$SECONDS status=0
    shift
    say "==> $name"
    "$@" || status=$?
    if [ "$status" -eq 0 ]; then
        say "==> $name ... $((SECONDS - began)) s"
    else
        say "==> $name ... FAILED after $((SECONDS - began)) s"
    fi
    return "$status"
}

have() { command -v "$1" >/dev/null 2>&1; }

# --- The workspace -------------------------------------------------------------------------------------------------

enter_workspace() { cd "$(dirname "${BASH_SOURCE[0]}")/.."; }

# The oldest Rust that the workspace promises to build with, as `1.95`.
recorded_rust() { sed -n 's/^rust-version *= *"\([0-9]*\.[0-9]*\).*/\1/p' Cargo.toml; }

# Where cargo puts what it builds. Asked of cargo, because the folder may be set in the environment or in a
# configuration file.
target_dir() {
    cargo metadata --offline --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# Where it puts programs of a profile: one level deeper when a target is named. The dev profile's folder is `debug`.
profile_dir() {
    local target
    target=$(target_dir)
    printf '%s\n' "$target${CARGO_BUILD_TARGET:+/$CARGO_BUILD_TARGET}/$1"
}

debug_dir() { profile_dir debug; }

release_dir() {
    local target
    target=$(target_dir)
    printf '%s\n' "$target${CARGO_BUILD_TARGET:+/$CARGO_BUILD_TARGET}/release"
}

# A release that is built in half the time and is a few percent slower. For comparing like with like only.
quick_release() { export CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16; }

# The engine and the tools of loadtest/, as a release.
build_load_tools() { run_cargo build --locked --release -p eventpulse -p eventpulse-loadtest; }

cargo_network=''

# Needs no network where it can: with every crate in cargo's cache, a build must not fail for a registry that is down.
choose_network() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    # For this host only: what other systems need is never compiled here, so it need not be here either.
    if cargo fetch --quiet --locked --offline --target "$host" >/dev/null 2>&1 &&
        cargo fetch --quiet --locked --offline --target "$host" \
            --manifest-path examples/receivers/rust/Cargo.toml >/dev/null 2>&1 &&
        cargo fetch --quiet --locked --offline --target "$host" \
            --manifest-path sdk-wasm/Cargo.toml >/dev/null 2>&1 &&
        cargo fetch --quiet --locked --offline --target "$host" \
            --manifest-path sdk-wasm/bindings/Cargo.toml >/dev/null 2>&1; then
        cargo_network=--offline
    fi
}

# run_cargo COMMAND ARGUMENTS...: cargo, without the network when it is not needed.
run_cargo() {
    local command=$1
    shift
    cargo "$command" ${cargo_network:+"$cargo_network"} "$@"
}

# --- What has to be there ------------------------------------------------------------------------------------------

# rust_at_least MINIMUM: whether the rustc that would be used is that new.
rust_at_least() {
    local version
    version=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p') || return 1
    [ -n "$version" ] && have cargo && cargo --version >/dev/null 2>&1 || return 1
    [ "${version%%.*}" -gt "${1%%.*}" ] ||
        { [ "${version%%.*}" -eq "${1%%.*}" ] && [ "${version#*.}" -ge "${1#*.}" ]; }
}

# Finds a Rust that is new enough, and uses it. Installs nothing, and leaves the user's default as it is.
find_rust() {
    local wanted
    wanted=$(recorded_rust)
    [ -n "$wanted" ] || die "Cargo.toml records no rust-version"
    rust_at_least "$wanted" && return 0
    # Installed, but not in the PATH of this shell.
    PATH=${CARGO_HOME:-${HOME:-}/.cargo}/bin:$PATH
    export PATH
    rust_at_least "$wanted" && return 0
    if have rustup && rustup run "$wanted" rustc --version >/dev/null 2>&1; then
        export RUSTUP_TOOLCHAIN=$wanted
        rust_at_least "$wanted" && return 0
    fi
    return 1
}

# A compiler that links: on Debian `cc` may be there without the C library's development files.
find_cc() {
    local out status=0
    have cc || return 1
    if [ "$(uname -s)" = Darwin ]; then
        # Asking the stub itself would open a window.
        xcode-select -p >/dev/null 2>&1
        return
    fi
    out=$(mktemp "${TMPDIR:-/tmp}/cc.XXXXXX")
    echo 'int main(void) { return 0; }' | cc -x c -o "$out" - >/dev/null 2>&1 || status=1
    rm -f "$out"
    return "$status"
}

# Distributions keep the server's programs out of the PATH, since several versions may stand side by side. These are
# the places where engine/embedded/src/find.rs looks: finding more here would only move the complaint to the end.
find_postgres() {
    local folder
    have postgres && have initdb && return 0
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/bin \
        /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin /opt/homebrew/bin; do
        [ -x "$folder/postgres" ] && [ -x "$folder/initdb" ] && return 0
    done
    return 1
}

find_redis() {
    local name folder
    for name in redis-server valkey-server; do
        have "$name" && return 0
        for folder in /usr/bin /usr/sbin /usr/local/bin /opt/homebrew/bin /opt/homebrew/opt/redis/bin \
            /opt/homebrew/opt/valkey/bin; do
            [ -x "$folder/$name" ] && return 0
        done
    done
    return 1
}

# The server, for the tests, and the tool that checks what it reads. One package has both.
prometheus_missing='prometheus and promtool are not here: install your system'"'"'s package for Prometheus'
find_prometheus() { have prometheus && have promtool; }

# prepare [valgrind] [k6] [prometheus]: makes the machine ready, after saying what it lacks. Installs nothing where nothing is missing.
# What k6 is built with is only for who asks for it. So is valgrind, and only where it can be installed without more ado: nothing else needs it.
prepare() {
    local packages='' missing='' rust=''
    find_rust || rust=missing
    find_cc || missing="$missing cc"
    find_postgres || missing="$missing postgres"
    find_redis || missing="$missing redis"
    case " $* " in *' valgrind '*) ! have apt-get || have valgrind || missing="$missing valgrind" ;; esac
    # Where it cannot be installed, its own test says so.
    case " $* " in *' prometheus '*) find_prometheus || { ! have apt-get && ! have brew; } || missing="$missing prometheus" ;; esac
    case " $* " in
        *' k6 '*)
            # To fetch Go, which builds it.
            if ! find_k6_here && ! have go; then
                have curl || missing="$missing curl"
                have unzip || missing="$missing unzip"
            fi
            ;;
    esac
    # To fetch the Rust installer, and then the crates.
    if [ -n "$rust" ] && ! have rustup; then
        have curl || missing="$missing curl"
    fi

    if [ -n "$missing" ]; then
        case $(uname -s) in
            Darwin) install_by_brew "$missing" ;;
            *)
                have apt-get || die "missing:$missing. This script installs for Debian, Ubuntu and macOS; please install" \
                    "by your system's package manager a C compiler, the PostgreSQL server, Redis or Valkey, and curl"
                packages=$(apt_packages "$missing")
                install_by_apt "$packages"
                ;;
        esac
    fi
    [ -z "$rust" ] || install_rust
    choose_network
}

# --- k6 ------------------------------------------------------------------------------------------------------------

# The one place that says which k6 the load tests are written for.
k6_version=v1.8.1
k6=''
k6_missing="k6 $k6_version is not here and could not be built: that needs a network, once, and curl and unzip where there is no Go"

# For where there is no Go, or one that is too old to build that k6: the toolchain as the Go module proxy has it.
go_version=go1.26.0

# find_k6_here: finds k6 $k6_version, if it is here.
find_k6_here() {
    if have k6 && k6 version 2>/dev/null | grep -q "$k6_version[ ,]"; then
        k6=k6
        return 0
    fi
    k6=${XDG_CACHE_HOME:-$HOME/.cache}/eventpulse/k6-$k6_version/k6
    [ -x "$k6" ]
}

# find_k6: finds k6 $k6_version, or has Go build it into the user's cache: about two minutes, once.
find_k6() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/eventpulse go
    ! find_k6_here || return 0
    go=$(find_go "$cache") || return 1
    say "building k6 $k6_version by Go, into $cache"
    mkdir -p "$cache/k6-$k6_version"
    # Into place in one step, so that an interrupted build leaves nothing half.
    GOBIN=$cache/k6-new GOFLAGS='' step "go install k6" "$go" install "go.k6.io/k6@$k6_version" </dev/null || return 1
    mv "$cache/k6-new/k6" "$k6"
}

# find_go CACHE: prints the path of a Go from 1.21 on, which fetches by itself the newer one that a module asks for.
find_go() {
    local cache=$1 proxy name machine
    if have go && go version 2>/dev/null | grep -Eq 'go(1\.2[1-9]|1\.[3-9][0-9]|[2-9])'; then
        command -v go
        return 0
    fi
    case $(uname -m) in
        x86_64) machine=amd64 ;;
        aarch64 | arm64) machine=arm64 ;;
        *) return 1 ;;
    esac
    name=v0.0.1-$go_version.$(uname -s | tr '[:upper:]' '[:lower:]')-$machine
    if [ ! -x "$cache/$name/bin/go" ]; then
        have curl && have unzip || return 1
        proxy=${GOPROXY:-https://proxy.golang.org}
        warn "installing Go ($go_version) into $cache, to build k6"
        mkdir -p "$cache"
        curl --silent --show-error --fail --location --output "$cache/$name.zip" \
            "${proxy%%[,|]*}/golang.org/toolchain/@v/$name.zip" || return 1
        rm -rf "$cache/unzipped"
        unzip -q "$cache/$name.zip" -d "$cache/unzipped" || return 1
        # A module's files have no mode.
        chmod -R u+x "$cache/unzipped/golang.org/toolchain@$name/bin" "$cache/unzipped/golang.org/toolchain@$name/pkg/tool"
        mv "$cache/unzipped/golang.org/toolchain@$name" "$cache/$name"
        rm -rf "$cache/$name.zip" "$cache/unzipped"
    fi
    printf '%s\n' "$cache/$name/bin/go"
}

# --- WebAssembly ---------------------------------------------------------------------------------------------------

wasm_target=wasm32-unknown-unknown
wasm_missing="this Rust cannot build for $wasm_target: run 'rustup target add $wasm_target', or on Debian install rustc-web and rust-web-src"
npm_missing='Node.js from 20 on and npm are needed for the JavaScript example, and are not here'

# Empty where nothing may be installed.
may_install=yes
# What cargo has to be told to build for it, as NAME=VALUE.
wasm_settings=()

# Whether a compiler has the standard library for it.
builds_wasm() {
    local folder
    folder=$("$1" --print target-libdir --target "$wasm_target" 2>/dev/null) || return 1
    ls "$folder"/libstd-*.rlib >/dev/null 2>&1
}

# find_wasm_rust: finds a way to build for WebAssembly, or makes one: the toolchain's own target, the one that rustup
# fetches, or Debian's compiler with a standard library that is built once into the user's cache.
find_wasm_rust() {
    if [ "${WASM_TOOLCHAIN:-}" != debian ]; then
        builds_wasm rustc && return 0
        if [ -n "$may_install" ] && have rustup; then
            warn "installing Rust's target $wasm_target by rustup"
            rustup target add "$wasm_target" >&2 </dev/null && builds_wasm rustc && return 0
        fi
    fi
    find_debian_wasm
}

# Debian's packages hold a compiler and its library's source, complete with what that depends on, so nothing is fetched.
find_debian_wasm() {
    local compiler=/usr/bin/rustc source=/usr/lib/rustlib/src/rust/library/std linker sysroot
    if [ ! -x "$compiler" ] || [ ! -d "$source" ]; then
        [ -n "$may_install" ] && have apt-get || return 1
        warn "installing Debian's Rust for WebAssembly (rustc-web, rust-web-src)"
        install_by_apt ' rustc-web rust-web-src' >&2 || return 1
        [ -x "$compiler" ] && [ -d "$source" ] || return 1
    fi
    linker=$(find_wasm_linker) || return 1
    sysroot=${XDG_CACHE_HOME:-$HOME/.cache}/eventpulse/wasm-sysroot-$("$compiler" --version | cut -d ' ' -f 2)
    [ -d "$sysroot" ] || build_wasm_std "$compiler" "$sysroot" || return 1
    wasm_settings=(
        "RUSTC=$compiler"
        "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker"
        "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=--sysroot=$sysroot"
    )
}

# The linker that comes with rustup's toolchain, or one of the system's.
find_wasm_linker() {
    local own name
    own=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
    if [ -x "$own" ]; then
        printf '%s\n' "$own"
        return 0
    fi
    for name in rust-lld wasm-ld wasm-ld-19; do
        command -v "$name" && return 0
    done
    [ -n "$may_install" ] && have apt-get || return 1
    warn "installing a linker for WebAssembly (lld-19)"
    install_by_apt ' lld-19' >&2 || return 1
    command -v wasm-ld-19
}

# build_wasm_std COMPILER SYSROOT: the standard library, compiled by cargo as a part of an empty crate and moved to where a
# compiler looks for it.
build_wasm_std() {
    local compiler=$1 sysroot=$2 work libraries status=0
    work=$(mktemp -d "${TMPDIR:-/tmp}/wasm-std.XXXXXX")
    libraries=$work/sysroot/lib/rustlib/$wasm_target/lib
    mkdir -p "$work/src" "$libraries"
    : >"$work/src/lib.rs"
    printf '%s\n' '[package]' 'name = "nothing"' 'version = "0.0.0"' 'edition = "2021"' '[profile.release]' \
        'panic = "abort"' '[workspace]' >"$work/Cargo.toml"
    warn "building Rust's standard library for $wasm_target, once"
    # Bootstrap, because building the library is not a stable feature of cargo. Bitcode, or modules could not be optimised
    # together with it.
    (cd "$work" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS RUSTC="$compiler" RUSTC_BOOTSTRAP=1 \
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=-Cembed-bitcode=yes CARGO_TARGET_DIR="$work/target" \
        cargo build --quiet --release -Zbuild-std=std,panic_abort --target "$wasm_target" >&2 </dev/null) || status=1
    if [ "$status" -eq 0 ]; then
        find "$work/target/$wasm_target/release/deps" -name '*.rlib' ! -name 'libnothing-*' -exec cp {} "$libraries/" \;
        mkdir -p "${sysroot%/*}"
        # Into place in one step, so that an interrupted build leaves nothing half.
        rm -rf "$sysroot.new"
        cp -R "$work/sysroot" "$sysroot.new" && mv "$sysroot.new" "$sysroot" || status=1
    fi
    rm -rf "$work"
    return "$status"
}

# wasm_cargo COMMAND ARGUMENTS...: cargo for WebAssembly, in the current folder. Without the network where it is not needed.
wasm_cargo() {
    local command=$1 network=''
    shift
    if cargo fetch --quiet --locked --offline --target "$wasm_target" >/dev/null 2>&1; then network=--offline; fi
    # What the caller's own settings say of flags is meant for another target.
    env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET ${wasm_settings[@]+"${wasm_settings[@]}"} \
        cargo "$command" --locked ${network:+"$network"} --target "$wasm_target" "$@"
}

# Tried rather than looked up: a version manager's stub is not the language.
find_npm() {
    node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)' >/dev/null 2>&1 </dev/null &&
        npm --version >/dev/null 2>&1 </dev/null
}

# stage_js FOLDER: the example and its tools in a folder of their own, so that the source stays as it is in the repository.
stage_js() {
    mkdir -p "$1"
    cp sdk-wasm/examples/js/*.* "$1/"
    rm -rf "$1/wit"
    cp -R sdk-wasm/wit "$1/wit"
    install_js "$1"
}

# install_js FOLDER: what the example's lock file names, unless it is there already.
install_js() {
    local mark=$1/node_modules/.eventpulse-installed
    cmp -s "$1/package-lock.json" "$mark" && return 0
    (cd "$1" && npm ci --no-audit --no-fund >npm.log 2>&1 </dev/null) || {
        tail -n 5 "$1/npm.log" >&2
        return 1
    }
    cp "$1/package-lock.json" "$mark"
}

# --- Debian and Ubuntu ---------------------------------------------------------------------------------------------

# apt_packages MISSING: says what will be installed and for what, on stderr, and prints the packages' names.
apt_packages() {
    local one
    for one in $1; do
        case $one in
            cc)
                warn "installing a C compiler (gcc, libc6-dev)"
                printf ' gcc libc6-dev'
                ;;
            postgres)
                warn "installing the PostgreSQL server's programs (postgresql); no database is created or started"
                printf ' postgresql'
                ;;
            redis)
                warn "installing the Redis server's program (redis-server); it is neither started nor enabled"
                printf ' redis-server'
                ;;
            valgrind)
                warn "installing valgrind, to count instructions"
                printf ' valgrind'
                ;;
            prometheus)
                warn "installing Prometheus (prometheus, with promtool); it is neither started nor enabled"
                printf ' prometheus'
                ;;
            unzip)
                warn "installing unzip, to unpack Go, which builds k6"
                printf ' unzip'
                ;;
            curl)
                warn "installing curl, to fetch Rust or Go (curl, ca-certificates)"
                printf ' curl ca-certificates'
                ;;
        esac
    done
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt_get() {
    # Someone else may hold apt's lock, above all on a machine that has just been started.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

apt_install() {
    local packages=("$@")
    # Package lists are fetched when there are none, and when those that are there turn out to be stale.
    if ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 &&
        apt_get install --yes --no-install-recommends "${packages[@]}" >"$apt_log" 2>&1; then
        return 0
    fi
    # One broken list, of somebody else's repository, is no reason to stop: the installation shows what matters.
    apt_get update >"$apt_log" 2>&1 || true
    apt_get install --yes --no-install-recommends "${packages[@]}" >>"$apt_log" 2>&1 && return 0
    cat "$apt_log" >&2
    die "apt-get could not install: $*"
}

policy=/usr/sbin/policy-rc.d
policy_kept=/usr/sbin/policy-rc.d.before-eventpulse
policy_mark='written by the scripts of EventPulse for the time of one installation'
cluster_conf=/etc/postgresql-common/createcluster.conf

# Debian starts a service when its package is installed, unless this file says no.
forbid_services() {
    allow_services # what an interrupted run left behind
    if [ -e "$policy" ]; then
        as_root mv "$policy" "$policy_kept"
    fi
    printf '#!/bin/sh\n# %s\nexit 101\n' "$policy_mark" | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

allow_services() {
    if grep -q "$policy_mark" "$policy" 2>/dev/null; then
        as_root rm -f "$policy"
    fi
    if [ -e "$policy_kept" ] && [ ! -e "$policy" ]; then
        as_root mv "$policy_kept" "$policy"
    fi
}

# The package's script creates a cluster that starts with the machine, unless this setting says no. It is put back
# afterwards: who installs PostgreSQL for another purpose expects the usual.
forbid_cluster() {
    as_root cp -p "$cluster_conf" "$cluster_conf.before-eventpulse"
    printf '\ncreate_main_cluster = false\n' | as_root tee -a "$cluster_conf" >/dev/null
}

allow_cluster() {
    if [ -e "$cluster_conf.before-eventpulse" ]; then
        as_root mv "$cluster_conf.before-eventpulse" "$cluster_conf"
    fi
}

package_installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q ' installed$'; }

# A unit that came with the package is left disabled; one that was here before is not touched.
disable_unit() {
    if have systemctl; then
        as_root systemctl disable "$1" >/dev/null 2>&1 || true
    elif have update-rc.d; then
        as_root update-rc.d "$1" disable >/dev/null 2>&1 || true
    fi
}

# A subshell: its traps undo what it did to the system, however it ends, and touch no other trap.
install_by_apt() (
    read -r -a packages <<<"$1"
    [ "$(id -u)" -eq 0 ] || have sudo || die "that needs root: run as root or install sudo, or install by hand: ${packages[*]}"
    apt_log=$(mktemp "${TMPDIR:-/tmp}/apt.XXXXXX")
    units=''
    case " ${packages[*]} " in *' redis-server '*) package_installed redis-server || units="$units redis-server" ;; esac
    case " ${packages[*]} " in *' prometheus '*) package_installed prometheus || units="$units prometheus" ;; esac
    case " ${packages[*]} " in *' postgresql '*) package_installed postgresql-common || units="$units postgresql" ;; esac

    undo() {
        # Here, so that it also happens when the installation stops half way.
        for unit in $units; do
            disable_unit "$unit"
        done
        allow_cluster
        allow_services
        rm -f "$apt_log"
    }
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    forbid_services
    allow_cluster # what an interrupted run left behind
    case " ${packages[*]} " in
        *' postgresql '*)
            # On its own first: the setting can only be changed once its file is there.
            step 'apt-get install postgresql-common' apt_install postgresql-common
            forbid_cluster
            ;;
    esac
    step "apt-get install ${packages[*]}" apt_install "${packages[@]}"
)

# --- macOS ---------------------------------------------------------------------------------------------------------

install_by_brew() {
    local one formulas=''
    for one in $1; do
        case $one in
            cc) die "no C compiler: run 'xcode-select --install', then this script again" ;;
            postgres) formulas="$formulas postgresql@17" ;;
            redis) formulas="$formulas redis" ;;
            prometheus) formulas="$formulas prometheus" ;;
            curl) die "no curl in the PATH, though macOS comes with one" ;;
        esac
    done
    have brew || die "missing:$1. They come by Homebrew, which is not installed: see https://brew.sh"
    for one in $formulas; do
        say "installing $one by Homebrew; it is not started"
        step "brew install $one" brew install --quiet "$one" </dev/null
    done
}

# --- Rust ----------------------------------------------------------------------------------------------------------

# The version that the workspace records, beside whatever Rust there is: the default toolchain stays what it was.
install_rust() {
    local wanted
    wanted=$(recorded_rust)
    if have rustup; then
        say "installing Rust $wanted by rustup, minimal profile; the default toolchain is not changed"
        step "rustup toolchain install $wanted" rustup toolchain install "$wanted" --profile minimal --no-self-update
    else
        say "installing Rust $wanted by rustup (https://rustup.rs), minimal profile, into ${CARGO_HOME:-${HOME:-}/.cargo}"
        step "rustup" run_rustup_installer "$wanted"
    fi
    find_rust || die "Rust $wanted has been installed, but 'cargo --version' does not work"
}

run_rustup_installer() {
    # Another Rust in the PATH, too old for us, is no reason to stop: ours comes first in the scripts' PATH only.
    curl --proto '=https' --tlsv1.2 --silent --show-error --fail --location https://sh.rustup.rs |
        RUSTUP_INIT_SKIP_PATH_CHECK=yes sh -s -- -y --quiet --no-modify-path --profile minimal --default-toolchain "$1"
}

# component NAME: rustfmt or clippy, which the minimal profile leaves out.
component() {
    local command=$1
    [ "$command" != rustfmt ] || command=fmt
    cargo "$command" --version >/dev/null 2>&1 && return 0
    have rustup || die "'cargo $command' does not work, and this Rust is not rustup's: install your system's package for $1"
    say "installing $1 by rustup"
    rustup component add "$1"
}
