#!/bin/bash
# need.sh GROUP...: installs with apt what the groups need and is not there. Does nothing, and asks nobody, when all is.
#   build  compiler and linker      mount  FUSE      test  system tests      lint  linters of scripts      bench  peers
#   vm     guests: QEMU, and what the recipe of their images needs
#   coverage  the tools of the LLVM that the compiler was built with
set -u
missing=()
# need PROGRAM PACKAGE: by the program, so that one from elsewhere counts
need() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" > /dev/null || missing+=("$2"); }
# qemu-img with its iSCSI driver. Both are installed in the driver's version: apt would remove a newer qemu-img from elsewhere.
need_qemu() {
  PATH=$PATH:/usr/sbin:/sbin command -v qemu-img > /dev/null && compgen -G '/usr/lib/*/qemu/block-iscsi.so' > /dev/null && return
  qemu=missing
}
qemu=
for group in "$@"; do
  case $group in
    build)
      need gcc gcc
      need make make
      need pkg-config pkg-config
      [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
      ;;
    mount) need fusermount3 fuse3 ;;
    demo)
      need python3 python3 # damage.sh
      need flock util-linux
      ;;
    lint)
      need git git
      need shellcheck shellcheck
      need python3 python3
      python3 -c 'import pyflakes' 2> /dev/null || need pyflakes3 pyflakes3
      ;;
    test)
      need python3 python3
      need fio fio
      need setfacl acl
      need setfattr attr
      need mkfs.ext4 e2fsprogs
      need mkfs.xfs xfsprogs
      need mkfs.btrfs btrfs-progs
      need rsync rsync
      need losetup mount
      need setpriv util-linux
      need setsid util-linux
      need md5sum coreutils
      need find findutils
      compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null || missing+=(postgresql postgresql-contrib)
      # peers and oracles of the block side
      need tgtadm tgt
      need iscsi-test-cu libiscsi-bin
      need xz xz-utils
      need 7zz 7zip
      need vhdiinfo libvhdi-utils
      compgen -G '/usr/lib/python3/dist-packages/pyvhdi.*' > /dev/null || missing+=(python3-libvhdi)
      need qemu-system-x86_64 qemu-system-x86
      need_qemu
      ;;
    vm)
      need python3 python3
      need readelf binutils
      need dpkg-deb dpkg
      need qemu-system-x86_64 qemu-system-x86
      need_qemu
      ;;
    coverage)
      llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
      compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-cov" > /dev/null || need "llvm-cov-$llvm" "llvm-$llvm"
      ;;
    bench)
      need tgtd tgt
      need iscsi-perf libiscsi-bin
      need_qemu
      need fio fio
      need python3 python3
      need mkfs.btrfs btrfs-progs
      need zfs-fuse zfs-fuse
      need glusterd glusterfs-server
      need glusterfs glusterfs-client
      need mkfs.xfs xfsprogs
      need ip iproute2
      need nsenter util-linux
      need losetup mount
      ;;
    *)
      echo "need.sh: unknown group $group" >&2
      exit 2
      ;;
  esac
done
[ ${#missing[@]} -eq 0 ] && [ -z "$qemu" ] && exit 0
if ! command -v apt-get > /dev/null || [ "$(id -u)" != 0 ]; then
  echo "missing: ${missing[*]} ${qemu:+qemu-utils qemu-block-extra}; install them, or run this as root on Debian" >&2
  exit 1
fi
echo "installing ${missing[*]} ${qemu:+qemu-utils qemu-block-extra}"
case " ${missing[*]} " in
  *' postgresql '*)
    # only its programs are wanted: no cluster, no server at boot
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
      mkdir -p /etc/postgresql-common
      echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
    fi
    ;;
esac
export DEBIAN_FRONTEND=noninteractive
if [ ! -e /usr/sbin/policy-rc.d ]; then
  # only the programs are wanted: nothing that is installed here is started as a service
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
# get ARGUMENT...: apt-get, more than once: a mirror that does not answer, or another apt at work, is no reason to fail.
get() {
  local turn
  for turn in 1 2 3; do
    apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 "$@" && return
    echo "apt-get $1 failed ($turn)" >&2
    [ "$turn" = 3 ] || sleep $((turn * 10))
  done
  return 1
}
get update -o APT::Update::Error-Mode=any || echo "trying with the lists that are there" >&2
if [ -n "$qemu" ]; then
  version=$(apt-cache policy qemu-block-extra | awk '$1 == "Candidate:" { print $2 }')
  missing+=("qemu-utils=$version" "qemu-block-extra=$version")
fi
get install -y --no-install-recommends --allow-downgrades -o Dpkg::Options::=--force-confold "${missing[@]}" > /dev/null
