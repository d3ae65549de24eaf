printf 'programs %s\nroot %s\n' "$programs" "$root"
[ -f "$state/installed" ] && sed 's/^/installed /' "$state/installed"
[ -f "$state/start" ] && printf 'start %s\n' "$(hash "$state/start")"
for file in "$programs"/agent-*; do
  [ -x "$file" ] || continue
  case $file in */agent-"$wanted") printf 'program %s\n' "$(hash "$file")";; esac
  printf 'kept %s\n' "${file##*/agent-}"
done
[ -n "$(ours host "$state/home")" ] && echo running
for other in "$root"/*; do
  [ "$other" != "$state" ] && [ -d "$other/home" ] && [ -n "$(ours host "$other/home")" ] || continue
  printf 'other %s\n' "${other##*/}"
done
echo end
