#!/usr/bin/env bash
# A Ray head on this machine, to submit jobs to and to watch in Ray's dashboard.
#
#   launch/local_ray.sh start [options of `ray start`]
#   launch/local_ray.sh status
#   launch/local_ray.sh stop
#
# Token authentication is on, and the dashboard listens on loopback only. From another machine, reach it through
# `ssh -L 8265:localhost:8265 <this machine>`, or set DASHBOARD_HOST=0.0.0.0 and mind who else is on the network.
# Other Ray clusters on this machine stay as they are: the head has its own ports (RAY_PORT, DASHBOARD_PORT) and
# folder (RAY_TEMP_DIR), and `stop` ends the process that `start` recorded in RLHF_RAY_STATE, nothing else.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
# Jobs inherit the head's PATH, so `rlhf-ray` must be on it.
[ ! -x "$repository/.venv/bin/ray" ] || export PATH="$repository/.venv/bin:$PATH"
export RAY_AUTH_MODE=token

state=${RLHF_RAY_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/rlhf-ray}
port=${RAY_PORT:-6379}
dashboard_host=${DASHBOARD_HOST:-127.0.0.1}
dashboard_port=${DASHBOARD_PORT:-8265}
temp_dir=${RAY_TEMP_DIR:-/tmp/ray-head-$(id -u)}
deadline_s=${START_TIMEOUT_S:-180}

running() { # The recorded process is alive and still the one that was started.
  [ -f "$state/pid" ] && ps -p "$(cat "$state/pid")" -o args= 2>/dev/null | grep -q 'ray start --head'
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$dashboard_port") 2>/dev/null; }

start() {
  if running; then
    echo "already running: process $(cat "$state/pid"), dashboard $(cat "$state/address")" >&2
    exit 1
  fi
  if answers; then
    echo "port $dashboard_port is taken by another program; set DASHBOARD_PORT (and RAY_PORT)" >&2
    exit 1
  fi
  mkdir -p "$state" "$temp_dir"
  ray get-auth-token --generate >/dev/null
  set -m # a process group of its own: Ctrl-C here does not reach it
  nohup ray start --head --block --port "$port" --dashboard-host "$dashboard_host" --dashboard-port "$dashboard_port" \
    --temp-dir "$temp_dir" --disable-usage-stats "$@" >"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  echo "http://127.0.0.1:$dashboard_port" >"$state/address"
  for ((waited = 0; waited < deadline_s; waited++)); do
    if answers; then
      echo "Ray runs: process $(cat "$state/pid"), dashboard $(cat "$state/address"), log $state/log"
      echo "Its token, which the dashboard asks for: ray get-auth-token"
      echo "Submit with launch/submit_ppo.sh --config FILE; end it with launch/local_ray.sh stop"
      return
    fi
    running || break
    sleep 1
  done
  echo "Ray did not start within $deadline_s s; the end of $state/log:" >&2
  tail -n 20 "$state/log" >&2
  ! running || stop
  exit 1
}

status() {
  if running; then
    echo "running: process $(cat "$state/pid"), dashboard $(cat "$state/address")"
  else
    echo "not running"
    exit 1
  fi
}

stop() {
  if ! running; then
    echo "not running"
    return
  fi
  local pid
  pid=$(cat "$state/pid")
  kill -TERM "$pid" # the head drains its node and ends its own processes
  for ((waited = 0; waited < 60; waited++)); do
    if ! running; then
      rm -f "$state/pid" "$state/address"
      echo "stopped"
      return
    fi
    sleep 1
  done
  kill -KILL -- "-$pid" # all of the head's process group
  rm -f "$state/pid" "$state/address"
  echo "killed: process $pid did not end within 60 s"
}

case ${1:-} in
start) start "${@:2}" ;;
status) status ;;
stop) stop ;;
*)
  sed -n '2,12s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
