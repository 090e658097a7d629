#!/usr/bin/env bash
# One virtual environment for each peer that the benchmarks compare with.
#
#     benchmarks/peers/install.sh [FOLDER] [PEER...]
#
# FOLDER is ~/.cache/mlip-peers if not given; PEER one or more of mace, instadeep, nequix, apax (all
# if not given). `PYTHON` names the interpreter, python3 if not set. A peer that cannot be installed
# is reported and left away; the benchmarks then say that it is missing.
#
# InstaDeep's package has our import name, hence an environment of its own. jax 0.10.2 computes
# wrong results on the CPU.
set -u

folder=${1:-$HOME/.cache/mlip-peers}
[ $# -gt 0 ] && shift
peers=("$@")
[ ${#peers[@]} -eq 0 ] && peers=(mace instadeep nequix apax)
python=${PYTHON:-python3}
jax="jax!=0.10.2"
mkdir -p "$folder"

# What pip installs, a line at a time.
packages() {
    case $1 in
        mace) printf '%s\n' "torch==2.13.0" "mace-torch==0.3.16" ;;
        instadeep) printf '%s\n' "mlip==0.2.5 $jax" ;;
        # It asks for CUDA on every Linux, and for a tracker that only its training needs.
        nequix) printf '%s\n' "$jax ase e3nn-jax equinox jraph optax matscipy h5py pyyaml tqdm \
            cloudpickle ase-db-backends" "--no-deps nequix==0.4.5" ;;
        apax) printf '%s\n' "apax==0.14.0 $jax" ;;
        *) return 1 ;;
    esac
}

install() {
    local env="$folder/$1" line
    rm -rf "$env"
    "$python" -m venv "$env" || return 1
    while read -r line; do
        # shellcheck disable=SC2086
        "$env/bin/python" -m pip install $line || return 1
    done < <(packages "$1")
}

status=0
for peer in "${peers[@]}"; do
    if ! packages "$peer" >/dev/null; then
        echo "$peer: unknown; choose from mace, instadeep, nequix, apax" >&2
        exit 2
    fi
    if install "$peer" >"$folder/$peer.log" 2>&1; then
        echo "$peer: installed in $folder/$peer"
    else
        echo "$peer: could not be installed, see $folder/$peer.log" >&2
        rm -rf "${folder:?}/$peer"
        status=1
    fi
done
exit $status
