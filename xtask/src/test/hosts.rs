//! The image of hosts for tests: a Debian that can boot, with an SSH server and an engine of its own.

use anyhow::{Result, ensure};

use super::docker;
use super::images::{self, Recipe};
use crate::sandbox::Sandbox;

const HOST: Recipe = Recipe {
    name: "dstack-test-host",
    packages: "openssh-server,sudo,docker.io,iproute2,iptables,procps,systemd,systemd-sysv,dbus,\
               libpam-systemd,fish,tcsh,busybox-static",
    finish: FINISH,
};

const FINISH: &str = r"
# Each host makes its own.
rm -f etc/ssh/ssh_host_*

# It came as a dependency, and nothing may rely on it.
rm -f usr/bin/python3*

# An image for the host's own engine, so that no registry is asked.
mkdir -p tiny/bin tiny/etc tiny/root tiny/tmp usr/share/dstack-test
chmod 1777 tiny/tmp
echo 'root:x:0:0:root:/root:/bin/sh' > tiny/etc/passwd
echo 'root:x:0:' > tiny/etc/group
cp bin/busybox tiny/bin/busybox
for applet in $(bin/busybox --list); do
    [ $applet = busybox ] || ln -s busybox tiny/bin/$applet
done
tar -C tiny -cf usr/share/dstack-test/tiny.tar .
rm -r tiny
";

/// Makes sure that the engine has the image.
pub(super) fn prepare(sandbox: &Sandbox) -> Result<Vec<(&'static str, String)>> {
    ensure!(docker::engine_answers(), "hosts are containers, and no engine answers");
    images::ensure(sandbox, &HOST)?;
    Ok(vec![("DSTACK_TEST_HOSTS", "1".to_owned())])
}
