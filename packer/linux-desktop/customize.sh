#!/bin/sh
# Turns the freshly installed packages in the folder $1 into the golden image's root file system. mmdebstrap runs it as
# its last hook, with a chroot that works in every one of its modes. Files that need no package to be in place are not
# made here but kept in rootfs/, so that changing one does not rebuild this stage.
set -eu
root=$1
here=$(dirname "$0")

# The user everything on the screen runs as. No password: nothing here asks for one.
chroot "$root" groupadd --gid 1000 desktop
chroot "$root" useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash --comment Desktop \
	--groups audio,video,input desktop

# Masked: what waits, wakes up, or serves a machine that has a login prompt, a swap file or a second user.
for unit in \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer systemd-tmpfiles-clean.timer man-db.timer \
	getty.target getty@tty1.service console-getty.service \
	systemd-logind.service systemd-user-sessions.service systemd-hostnamed.service \
	systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-update-done.service \
	systemd-random-seed.service systemd-pstore.service systemd-machine-id-commit.service \
	systemd-firstboot.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
	systemd-journal-flush.service systemd-binfmt.service systemd-ask-password-wall.path \
	systemd-ask-password-console.path systemd-fsck-root.service systemd-remount-fs.service \
	systemd-modules-load.service systemd-boot-system-token.service systemd-networkd.service \
	systemd-networkd.socket systemd-network-generator.service proc-sys-fs-binfmt_misc.automount \
	dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
	sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@.service kmod-static-nodes.service \
	keyboard-setup.service console-setup.service networking.service hwclock.service \
	acpid.path acpid.socket remote-fs.target
do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# Only the files in rootfs/ decide what starts.
rm -rf "$root"/etc/systemd/system/*.wants
for pair in \
	sysinit.target.wants/hvkube-guest.service \
	multi-user.target.wants/hvkube-xorg.service \
	multi-user.target.wants/hvkube-session.service \
	multi-user.target.wants/hvkube-acpid.service
do
	mkdir -p "$root/etc/systemd/system/${pair%/*}"
	ln -s "/etc/systemd/system/${pair#*/}" "$root/etc/systemd/system/$pair"
done
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

# Font caches name their folders' times, and the archive will clamp those: set the times first, then cache, or every
# program that draws text scans all fonts in every guest.
find "$root/usr/share/fonts" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}" {} +
chroot "$root" fc-cache --force --system-only

# The initial RAM disk: busybox, the listed modules with all they depend on, and /init. Left uncompressed: the guest
# would spend longer unpacking it than reading it.
kernel=$(basename "$(ls -d "$root"/lib/modules/*)")
initrd=$root/boot/hvkube-initrd
mkdir -p "$initrd/bin" "$initrd/lib" "$initrd/dev" "$initrd/proc" "$initrd/root"
cp "$root/bin/busybox" "$initrd/bin/busybox"
ln -s busybox "$initrd/bin/sh"
cp "$here/initrd/init" "$initrd/init"
chmod 0755 "$initrd/init"
chroot "$root" depmod "$kernel"
grep -v -e '^#' -e '^$' "$here/initrd/modules" | while read -r module; do
	chroot "$root" modprobe --set-version "$kernel" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
	name=$(basename "$path" .ko)
	cp "$root$path" "$initrd/lib/$name.ko"
	echo "$name" >>"$initrd/modules"
done
find "$initrd" -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH:-0}" {} +
chroot "$root" sh -c 'cd /boot/hvkube-initrd && find . | LC_ALL=C sort |
	cpio --quiet --create --format=newc --reproducible --owner=0:0' >"$root/boot/initrd.img"
rm -rf "$initrd"
mv "$root/boot/vmlinuz-$kernel" "$root/boot/vmlinuz"

# Every fork writes its own identity over these.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
ln -s /etc/machine-id "$root/var/lib/dbus/machine-id"
echo hvkube-desktop >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost hvkube-desktop\n::1\tlocalhost ip6-localhost\n' >"$root/etc/hosts"

# For the manifest beside the image.
chroot "$root" dpkg-query --show --showformat='${Package} ${Version}\n' | LC_ALL=C sort >"$root/boot/packages.txt"

# What only the build needed.
rm -rf "$root"/boot/config-* "$root"/boot/System.map-* "$root"/boot/initrd.img-* "$root"/vmlinuz* "$root"/initrd.img* \
	"$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/lib/apt/lists/* "$root"/var/lib/dpkg/*-old \
	"$root"/var/log/* "$root"/etc/ssh "$root"/etc/initramfs-tools "$root"/usr/share/doc-base
