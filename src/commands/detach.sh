# Takes the login for our repository away, and with it the source that needs it.
auth=/etc/apt/auth.conf.d/phoenix-nvidia.conf
[ -e "$auth" ] || exit 0
rm -f "$auth" /etc/apt/sources.list.d/phoenix-nvidia.sources || exit 1
echo "removed $auth"
