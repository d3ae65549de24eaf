//! The image of the simulated EC2's hosts: a Debian that can boot, with cloud-init, an SSH server and an engine.

use anyhow::{Result, ensure};

use super::docker;
use super::images::{self, Recipe};
use crate::sandbox::Sandbox;

/// The image that hosts boot, by its usual tag.
pub(crate) const IMAGE: &str = "dstack-ec2-host:latest";

const HOST: Recipe = Recipe {
    name: "dstack-ec2-host",
    // What only a virtual package names has to be named beside it.
    packages: "openssh-server,sudo,docker.io,iproute2,iptables,procps,systemd,systemd-sysv,dbus,\
               libpam-systemd,busybox-static,cloud-init,python3,python3-cffi-backend,ca-certificates,curl",
    finish: FINISH,
};

const FINISH: &str = r"
# Each host makes its own.
rm -f etc/ssh/ssh_host_*

# A container that is to be a machine: cloud-init shall look at what stands for its firmware.
sed -i 's/^    if is_container():/    if False:/' usr/lib/python3/dist-packages/cloudinit/dmi.py
grep -q '^    if False:' usr/lib/python3/dist-packages/cloudinit/dmi.py

# Nobody sits at a terminal of theirs, and nothing is to be done once a day.
for unit in getty@.service console-getty.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-pstore.service cloud-init-local.service; do
    ln -sf /dev/null etc/systemd/system/$unit
done

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
pub(crate) fn prepare(sandbox: &Sandbox) -> Result<Vec<(&'static str, String)>> {
    ensure!(docker::engine_answers(), "hosts are containers, and no engine answers");
    images::ensure(sandbox, &HOST)?;
    Ok(vec![("DSTACK_TEST_EC2_HOSTS", IMAGE.to_owned())])
}
