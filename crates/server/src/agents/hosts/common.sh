# What the other scripts share. Everything is POSIX, and asks for nothing but what every Linux has.
LC_ALL=C; export LC_ALL
PATH=${PATH:-/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
fail() { printf 'failed %s\n' "$(printf %s "$*" | tr '\n' ' ')"; exit 0; }
nap() { sleep 0.05 2>/dev/null || sleep 1; }
hash() {
  { sha256sum <"$1" || busybox sha256sum <"$1" || shasum -a 256 <"$1" || openssl dgst -sha256 -r <"$1"; } 2>/dev/null |
    { read -r first rest; printf %s "$first"; }
}
# Those of the files $2… of `/proc` that have the text $1.
having() {
  text=$1; shift
  if printf 'a\000b' | grep -qF b; then grep -lsF -e "$text" "$@"; return; fi
  # Busybox takes a zero byte for the end.
  for file; do
    tr '\0' '\n' 2>/dev/null <"$file" | grep -qF -e "$text" && echo "$file"
  done
}
# The processes with the role $1 among their first words and $2 anywhere.
ours() {
  for file in $(having "$2" /proc/[0-9]*/cmdline); do
    tr '\0' '\n' 2>/dev/null <"$file" | sed 3q | grep -qxF -e "$1" || continue
    file=${file#/proc/}; echo "${file%/cmdline}"
  done
}
# Asks these processes to end, and kills them after $3 looks.
end() {
  looks=0
  while pids=$(ours "$1" "$2"); [ -n "$pids" ]; do
    signal=TERM; [ "$looks" -ge "$3" ] && signal=KILL
    [ "$looks" -ge 200 ] && return 1
    kill -$signal $pids 2>/dev/null
    nap; looks=$((looks + 1))
  done
}
# Ends the agent and whatever would start it again. Its jobs live on.
stop() {
  : >"$state/stop" || return 1
  if [ "$systemd" ] && [ -f "$units/$unit" ]; then systemctl stop "$unit" >/dev/null 2>&1; fi
  end "$state/loop" "$state/loop" 0 && end "$state/start" "$state/start" 0 && end host "$state/home" 100
}
# Removes programs that no server's record names.
tidy() {
  for file in "$programs"/agent-*; do
    name=${file##*/agent-}
    case $name in *[!0-9a-f]*) continue;; esac
    grep -qsF -e "$name" "$root"/*/installed || rm -f "$file"
  done
  # What a broken connection left; nothing takes a day to arrive.
  find "$programs" -name 'agent-*.part' -mtime +0 -exec rm -f {} + 2>/dev/null
}
