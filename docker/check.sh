#!/usr/bin/env bash
# Proves docker/Dockerfile without a Docker engine: a fresh Debian root is made by debootstrap, the Dockerfile's own COPY
# and RUN lines are carried out in it with chroot, and its ENTRYPOINT then trains and evaluates, as the image's user.
#
#   docker/check.sh                   lint, build, `mbrl train`, `mbrl eval`; needs root, debootstrap and 4 GB in $TMPDIR
#   docker/check.sh --lint            only what needs neither root nor a network: hadolint, shellcheck, the plan of both images
#   docker/check.sh --gpu             of the GPU image: lint, plan, and whether the index has its torch. CUDA's wheels are
#                                     gigabytes and are not installed
#   docker/check.sh --build-arg A=B   as for docker build; may be repeated
#   docker/check.sh --mirror URL      Debian's mirror; default: the one that this host's apt uses
#   docker/check.sh --keep FOLDER     make the root in FOLDER and leave it there
#
# The network is reached as on this host: its apt sources, pip settings, proxies and certificates are lent to the root.
# Mounts live in a namespace of their own and end with this script, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
dockerfile=docker/Dockerfile

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
fail() {
  echo "docker/check.sh: $*" >&2
  exit 1
}

what=build arguments=() mirror='' keep='' inside=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --lint | --gpu) what=${1#--} ;;
    --build-arg) arguments+=("${2:?--build-arg needs NAME=VALUE}") && shift ;;
    --mirror) mirror=${2:?--mirror needs a URL} && shift ;;
    --keep) keep=${2:?--keep needs a folder} && shift ;;
    --inside) inside=${2:?} && shift ;; # the second half of this script, in its own namespace
    *) usage >&2 && fail "there is no option $1" ;;
  esac
  shift
done
[ "$what" != gpu ] || arguments+=(TORCH_INDEX=)

lint() {
  local tool missing=0
  for tool in hadolint shellcheck; do
    if ! PATH=.venv/bin:$PATH command -v "$tool" > /dev/null; then
      echo "$tool: not found, so not run (pip install '.[dev]')" >&2
      missing=1
    fi
  done
  [ $missing = 0 ] || [ "$what" != lint ] || fail "nothing is proved without the linters"
  [ $missing = 1 ] || PATH=.venv/bin:$PATH hadolint "$dockerfile"
  [ $missing = 1 ] || PATH=.venv/bin:$PATH shellcheck docker/check.sh
  "$python" docker/dockerfile.py plan "$dockerfile" ${arguments[@]+"${arguments[@]}"} > /dev/null
  "$python" docker/dockerfile.py plan "$dockerfile" TORCH_INDEX= > /dev/null
  echo "docker/check.sh: $dockerfile is clean"
}

# The host's pip settings of every level as environment variables.
pip_settings() {
  "$python" -m pip config list 2> /dev/null | sed -nE "s/^(global|install|:env:)\.([a-z-]+)='(.*)'$/\2 \3/p" |
    while read -r key value; do
      key=${key^^}
      echo "PIP_${key//-/_}=$value"
    done
}

gpu() {
  local wanted
  wanted=$(sed -n 's/^torch==//p' constraints.txt)
  # Without find-links and other local settings: what the normal index has.
  "$python" -m pip --isolated index versions torch 2> /dev/null | sed 's/[, ]\+/\n/g' | grep -qxF "$wanted" ||
    fail "the index has no torch $wanted for $("$python" --version)"
  echo "docker/check.sh: the index has torch $wanted; its CUDA wheels were not installed, so the GPU image is not proved"
}

# --- outside: a folder, and a namespace for mounts and processes -----------------------------------------------------
if [ -z "$inside" ]; then
  lint
  [ "$what" != lint ] || exit 0
  if [ "$what" = gpu ]; then
    gpu
    exit 0
  fi
  [ "$(id -u)" = 0 ] || fail "debootstrap and chroot need root; docker/check.sh --lint does not"
  for tool in debootstrap unshare chroot; do
    command -v "$tool" > /dev/null || fail "$tool is missing. On Debian: apt-get install debootstrap util-linux coreutils"
  done
  if [ -n "$keep" ]; then
    mkdir -p "$keep"
    [ -z "$(ls -A "$keep")" ] || fail "$keep is not empty"
    root=$(cd "$keep" && pwd)
  else
    root=$(mktemp -d)
    # Out here nothing is mounted below it, so this cannot reach anything that was lent to the root.
    trap 'rm -rf --one-file-system "$root" "$root.log"' EXIT
  fi
  chmod 755 "$root"
  words=()
  for argument in ${arguments[@]+"${arguments[@]}"}; do words+=(--build-arg "$argument"); done
  [ -z "$mirror" ] || words+=(--mirror "$mirror")
  # In the background, because bash would put a signal off until it ends.
  unshare --mount --propagation private --pid --fork --kill-child bash docker/check.sh --inside "$root" \
    ${words[@]+"${words[@]}"} &
  child=$!
  trap 'kill -KILL $child; wait $child || true; exit 130' INT TERM HUP
  wait $child
  exit
fi

# --- inside ----------------------------------------------------------------------------------------------------------
root=$inside
sent=$root/tmp/context # what the build is sent; /tmp is a tmpfs of this namespace
lent=() # environment of RUN lines, from the host
files=() # of the host, at the same path in the root
unmeasured=() # options of du: what is mounted there is not of the image

say() { echo "== $(printf '%3d' $SECONDS) s  $*"; }

# Directories are mounted, read-only; files are copied before every RUN, because packages may replace them.
lend() {
  local path
  for path in "$@"; do
    if [ -d "$path" ]; then
      mkdir -p "$root$path"
      mountpoint -q "$root$path" || mount --bind -o ro "$path" "$root$path"
      unmeasured+=("--exclude=$root$path")
    elif [ -f "$path" ]; then
      files+=("$path")
    fi
  done
}

lend_network() {
  local name setting word
  files+=(/etc/resolv.conf /etc/hosts)
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY SSL_CERT_FILE REQUESTS_CA_BUNDLE; do
    [ -z "${!name:-}" ] || lent+=("$name=${!name}")
  done
  mapfile -t -O "${#lent[@]}" lent < <(pip_settings)
  for setting in ${lent[@]+"${lent[@]}"}; do
    for word in ${setting#*=}; do
      case $word in
        file:///*/*) lend "$(dirname "${word#file://}")" ;; # the files of a local index lie beside its pages
        /*) lend "$word" ;;
      esac
    done
  done
  files+=(/etc/ssl/certs/ca-certificates.crt)
  if [ -d /usr/local/share/ca-certificates ]; then cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"; fi
}

# This host's apt, where it is of the image's release; else the mirror alone.
lend_apt() {
  local release=$1 path
  for path in /etc/apt/apt.conf /etc/apt/apt.conf.d /etc/apt/auth.conf /etc/apt/auth.conf.d; do
    [ ! -e "$path" ] || cp -r "$path" "$root/etc/apt/"
  done
  # shellcheck source=/dev/null
  [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = "$release" ] || return 0
  for path in sources.list sources.list.d trusted.gpg.d keyrings; do
    rm -rf "$root/etc/apt/${path:?}"
    [ ! -e "/etc/apt/$path" ] || cp -r "/etc/apt/$path" "$root/etc/apt/"
  done
  [ ! -d /usr/share/keyrings ] || cp -rn /usr/share/keyrings "$root/usr/share/"
}

base() {
  local release
  release=$(sed -nE 's/^debian:([a-z]+)-[0-9]{8}-slim(@.*)?$/\1/p' <<< "$1")
  [ -n "$release" ] || fail "the base image is $1; expected debian:RELEASE-YYYYMMDD-slim"
  if [ -z "$mirror" ]; then
    mirror=$(apt-get indextargets --format "\$(REPO_URI) \$(RELEASE)" 'Created-By: Packages' 2> /dev/null |
      sed -n "s/ $release\$//p" | head -n 1)
    [ -n "$mirror" ] || fail "this host's apt has no $release; give --mirror URL"
  fi
  say "FROM $1: debootstrap $release"
  debootstrap --variant=minbase "$release" "$root" "$mirror" > "$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2 && rm -f "$root.log" && fail "debootstrap failed"; }
  rm -f "$root.log"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/tmp"
  "$python" docker/dockerfile.py context . "$sent"
  lend_apt "$release"
  lend_network
}

within() { # USER FOLDER COMMAND NAME=VALUE...
  local user=$1 folder=$2 command=$3
  shift 3
  chroot --userspec="$user" "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root "$@" /bin/sh -c "cd '$folder' && $command"
}

workdir() { mkdir -p "$root$2"; }

copy() { # FOLDER SOURCE... TARGET
  local folder=$1 target=${*: -1} sources=("${@:2:$#-2}") source
  say "COPY ${sources[*]} $target"
  case $target in /*) ;; *) target=$folder/$target ;; esac
  case $target in */ | *.) mkdir -p "$root$target" ;; esac
  for source in "${sources[@]}"; do
    [ -e "$sent/$source" ] || fail "COPY $source: not in the context; see .dockerignore"
    if [ -d "$sent/$source" ]; then
      mkdir -p "$root$target"
      cp -r "$sent/$source/." "$root$target/"
    else
      cp "$sent/$source" "$root$target"
    fi
  done
}

run() { # USER FOLDER COMMAND NAME=VALUE...
  local path
  say "RUN ${3:0:100}"
  for path in "${files[@]}"; do
    mkdir -p "$root$(dirname "$path")"
    if [ -e "$path" ]; then cp -L "$path" "$root$path"; fi
  done
  within "$1" "$2" "{ $3; } > /tmp/run.log 2>&1 || { tail -n 40 /tmp/run.log >&2; exit 1; }" \
    ${lent[@]+"${lent[@]}"} "${@:4}" || fail "RUN failed: $3"
}

entry() { # USER FOLDER JSON-LIST NAME=VALUE...
  local user=$1 folder=$2 words
  words=$("$python" -c 'import json, shlex, sys; print(shlex.join(json.loads(sys.argv[1])))' "$3")
  shift 3
  say "the root is $(du -shx ${unmeasured[@]+"${unmeasured[@]}"} "$root" | cut -f 1); $(within "$user" "$folder" 'python -c "import torch; print(\"torch\", torch.__version__)"' "$@")"
  say "as user $user in $folder: $words train"
  within "$user" "$folder" "id -un && $words --version && $words train updates=300 eval.every=100 log_every=100 \
    rollout.lanes=500 dynamics.max_epochs=2 progress=false run_dir=runs/check" "$@" || fail "mbrl train failed"
  say "$words eval"
  within "$user" "$folder" "$words eval runs/check --episodes 2" "$@" || fail "mbrl eval failed"
  "$python" -c '
import json, sys
summary = json.load(open(sys.argv[1]))
sys.exit(0 if summary["status"] == "finished" and summary["updates"] == 300 else f"not what was asked for: {summary}")
' "$root$folder/runs/check/summary.json" || fail "the run's summary is wrong"
}

calls=$("$python" docker/dockerfile.py plan "$dockerfile" ${arguments[@]+"${arguments[@]}"})
eval "$calls"
say "docker/check.sh: $dockerfile builds, trains and evaluates"
