# Runs the uninstaller of a driver that NVIDIA's installer left, as "key value"
# lines. $1...: its options. It ends with 0 whatever it came to, so that the next
# probe tells.
program=
for f in nvidia-uninstall nvidia-installer; do
    command -v "$f" >/dev/null && program=$f && break
done
echo "begin 1"
if [ -z "$program" ]; then
    echo "missing yes"
    exit 0
fi
[ "$program" = nvidia-installer ] && set -- --uninstall "$@"
"$program" "$@" </dev/null 2>&1 | while IFS= read -r line; do printf 'says %s\n' "$line"; done
# It is no interrupted install any more.
rm -f /var/lib/phoenix-nvidia/driver.installing
echo "end 1"
exit 0
