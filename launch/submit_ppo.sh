#!/usr/bin/env bash
# Submit a PPO run to a Ray cluster, from the folder that holds its configuration and data.
#
#   launch/submit_ppo.sh --config configs/sentiment.yaml [key=value]...
#
# Goes to RAY_API_SERVER_ADDRESS, or else to the head that launch/local_ray.sh started. The working directory is copied
# to the cluster (without what .gitignore names), so runs are written below RUN_ROOT, an absolute path that the node of
# the driver can write: by default runs/ here, which suits a head on this machine. Options of `ray job submit` (such as
# --no-wait) come from SUBMIT_OPTIONS.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
[ ! -x "$repository/.venv/bin/ray" ] || export PATH="$repository/.venv/bin:$PATH"
export RAY_AUTH_MODE=token

state=${RLHF_RAY_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/rlhf-ray}
address=${RAY_API_SERVER_ADDRESS:-$(cat "$state/address" 2>/dev/null || true)}
if [ -z "$address" ]; then
  echo "no Ray to submit to: run launch/local_ray.sh start, or set RAY_API_SERVER_ADDRESS=http://host:8265" >&2
  exit 1
fi
root=${RUN_ROOT:-$PWD/runs}
case $root in
/*) ;;
*)
  echo "RUN_ROOT must be an absolute path, got '$root'" >&2
  exit 2
  ;;
esac

# shellcheck disable=SC2086
exec ray job submit --address "$address" --working-dir . ${SUBMIT_OPTIONS:-} -- rlhf-ray ppo "run.root=$root" "$@"
