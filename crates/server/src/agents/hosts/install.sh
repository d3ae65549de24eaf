write() {
  said=$( { printf '%s\n' "$2" | cat >"$1.new"; } 2>&1) && said=$(mv -f "$1.new" "$1" 2>&1) && return
  rm -f "$1.new"; fail "cannot write $1: $said"
}
# Starts the agent, now and after every end.
begin() {
  rm -f "$state/stop"
  if [ "$systemd" ]; then
    # Only where it must be: on some hosts this takes the GPUs from running containers.
    case $(systemctl show -p NeedDaemonReload "$unit" 2>/dev/null) in *=yes) systemctl daemon-reload;; esac
    systemctl reset-failed "$unit" 2>/dev/null
    said=$(systemctl start "$unit" 2>&1) && return
    systemctl daemon-reload; said=$(systemctl start "$unit" 2>&1)
  elif command -v setsid >/dev/null 2>&1; then
    setsid sh "$state/loop" </dev/null >/dev/null 2>&1 &
  else
    (trap '' HUP; exec sh "$state/loop") </dev/null >/dev/null 2>&1 &
  fi
}
# Runs a program for a while at most, and gives what it says: a broken one may do anything.
briefly() {
  "$@" </dev/null 2>&1 & pid=$!
  (sleep 5; kill -9 $pid) </dev/null >/dev/null 2>&1 & watcher=$!
  wait $pid; kill $watcher
}
# Talks to the agent with the program $1.
greet() {
  said=$(briefly "$1" connect --socket "$state/home/agent.sock" 2>/dev/null)
  case $said in "$magic"*) return;; esac
  return 1
}
answers() {
  deadline=$(($(date +%s) + patience))
  said="it does not listen"
  until [ -S "$state/home/agent.sock" ] && greet "$1"; do
    [ "$(date +%s)" -lt "$deadline" ] || return 1
    nap
  done
}
last_words() {
  printf '%s; ' "$said"
  if [ "$systemd" ]; then journalctl -u "$unit" -n 3 -o cat --no-pager 2>/dev/null
  else tail -n 3 "$state/agent.log" 2>/dev/null; fi
}
main() {
  umask 077
  said=$( { (umask 022; mkdir -p "$root") && mkdir -p "$state/home" && chmod 711 "$state"; } 2>&1) ||
    fail "cannot make $state: $said"
  [ -x "$program" ] || fail "$program is gone"
  if [ "$(cat /sys/fs/selinux/enforce 2>/dev/null)" = 1 ] && command -v chcon >/dev/null 2>&1; then
    chcon -t bin_t "$program" 2>/dev/null
  fi
  # Nothing is touched for a program that does not even start here.
  said=$(briefly "$program" --version 2>/dev/null)
  case $said in dstack-agent*) ;; *) printf 'unfit %s\n' "$(printf %s "$said" | tail -n 3 | tr '\n' ' ')"; exit 0;; esac
  write "$state/remove" "$remove_text"
  write "$state/start" "$start_text"
  if [ "$systemd" ]; then
    if [ "$(cat "$units/$unit" 2>/dev/null)" != "$unit_text" ]; then
      (umask 022; mkdir -p "$units/multi-user.target.wants")
      write "$units/$unit" "$unit_text"; chmod 644 "$units/$unit"
    fi
    ln -sf "../$unit" "$units/multi-user.target.wants/$unit"
  else
    write "$state/loop" "$loop_text"
  fi
  stop || fail "the agent before does not end"
  # One that takes another's place must also stay.
  if begin && answers "$program" && { [ ! -f "$state/good" ] || cmp -s "$state/good" "$state/start" ||
    { sleep 2; greet "$program"; }; }
  then
    write "$state/installed" "$record_text"
    write "$state/good" "$start_text"
    tidy
    echo done; exit 0
  fi
  words=$(last_words | tr '\n' ' ')
  if [ -f "$state/good" ] && ! cmp -s "$state/good" "$state/start"; then
    stop
    cp "$state/good" "$state/start.new" && mv -f "$state/start.new" "$state/start"
    if begin && answers "$previous"; then
      printf 'restored %s\n' "$words"; exit 0
    fi
  elif [ ! -f "$state/good" ]; then
    stop
  fi
  printf 'broken %s\n' "$words"
}
