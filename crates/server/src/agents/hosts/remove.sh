# Kills whatever still carries the mark of the task $1.
kill_task() {
  looks=0
  while files=$(having "DSTACK_JOB_ID=$1" /proc/[0-9]*/environ); [ -n "$files" ]; do
    [ "$looks" -ge 100 ] && return 1
    for file in $files; do file=${file#/proc/}; kill -9 "${file%/environ}" 2>/dev/null; done
    nap; looks=$((looks + 1))
  done
}
main() {
  [ -d "$state" ] || { [ "$systemd" ] && [ -f "$units/$unit" ]; } || { echo nothing; exit 0; }
  mkdir -p "$state"
  stop || fail "the agent does not end"
  name=$(sed -n 's/^program \(................\).*/\1/p' "$state/installed" 2>/dev/null)
  for program in "$programs/agent-$name" "$programs"/agent-*; do
    [ -x "$program" ] && [ -d "$state/home" ] || continue
    said=$("$program" remove-containers --home "$state/home" 2>&1) && break
    # The first one is the agent's own; another may be too old to know how.
    [ "$program" = "$programs/agent-$name" ] && fail "cannot remove the containers: $said"
  done
  end job "$state/home/" 0
  for task in "$state"/home/tasks/*; do
    [ -d "$task" ] || continue
    kill_task "${task##*/}" || fail "a process of the job ${task##*/} does not end"
  done
  if [ "$systemd" ]; then
    rm -f "$units/multi-user.target.wants/$unit" "$units/$unit"
    systemctl reset-failed "$unit" 2>/dev/null
  fi
  # What is mounted there is not ours to delete.
  grep -F -e " $state/" /proc/self/mountinfo | cut -d ' ' -f 5 | sort -r | while read -r point; do
    umount "$point" 2>/dev/null || umount -l "$point" 2>/dev/null
  done
  grep -qF -e " $state/" /proc/self/mountinfo && fail "something is mounted below $state"
  said=$(rm -rf "$state" 2>&1) || fail "cannot remove $state: $said"
  tidy
  rmdir "$programs" "$root" 2>/dev/null
  echo done
}
