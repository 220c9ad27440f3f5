#!/bin/sh
# Turn the Debian root $1 into a simulated EL 8 host. mmdebstrap runs this when all packages are installed.
set -eu
root=$1
here=$(cd "$(dirname "$0")" && pwd)

# What stands for a tool of EL is on nobody's PATH until an RPM links to it. gcc and cmake look for their parts in
# ../lib and ../share of where they are.
tools=/usr/simulated-el8/bin
mkdir -p "$root$tools"
ln -s ../lib ../share "$root/usr/simulated-el8/"
for name in cc c++ gcc g++ cpp gcc-ar gcc-nm gcc-ranlib gcov gcov-dump gcov-tool \
    cmake ctest cpack make patch ninja ccache createrepo_c; do
    for path in "$root/usr/bin/$name" "$root/usr/bin/$name"-1[0-9] \
        "$root"/usr/bin/*-linux-gnu-"$name" "$root"/usr/bin/*-linux-gnu-"$name"-1[0-9]; do
        if [ -L "$path" ] || [ -e "$path" ]; then
            mv "$path" "$root$tools/"
        fi
    done
done
mv "$root/usr/sbin/nft" "$root$tools/"

# Without these two GNUInstallDirs and Ansible would see a Debian.
rm -f "$root/etc/debian_version" "$root/etc/os-release" "$root/usr/lib/os-release"
cp "$here/etc/os-release" "$root/usr/lib/os-release"
ln -s ../usr/lib/os-release "$root/etc/os-release"
cp "$here/etc/redhat-release" "$root/etc/redhat-release"
ln -s redhat-release "$root/etc/rocky-release"
ln -s redhat-release "$root/etc/system-release"
mkdir -p "$root/etc/yum.repos.d"
cp "$here"/etc/yum.repos.d/*.repo "$root/etc/yum.repos.d/"

# Plugins of dnf that EL does not have.
(cd "$root/usr/lib/python3/dist-packages/dnf-plugins" && rm local.py show_leaves.py leaves.py)

cp -r "$here" "$root/simulated"
chroot "$root" python3 /simulated/repositories.py "$tools" /srv/simulated-el8
rm -r "$root/simulated"
chroot "$root" dnf --quiet --assumeyes --releasever=8 install rocky-release libstdc++
chroot "$root" dnf --quiet clean all

# Neither a role nor a module may find apt. mmdebstrap still wants to remove its own file from /etc/apt.
find "$root/etc/apt" -type f ! -name 00mmdebstrap -delete
rm -rf "$root"/usr/bin/apt* "$root"/usr/bin/dpkg* "$root"/usr/lib/apt "$root"/usr/lib/dpkg \
    "$root"/var/lib/apt "$root"/var/lib/dpkg "$root"/var/cache/apt "$root"/usr/bin/rpmbuild
