#!/bin/sh
# Installs Debian's Chromium and a font where this user may, else says in a line why not. It never
# fails: without a browser its tests are skipped. Downloads alone are limited in time, since an
# installation that is cut off would leave broken packages.
without() {
    echo "No Chromium: $1. The tests of the report in a browser are skipped."
    exit 0
}

command -v chromium > /dev/null && exit 0
command -v apt-get > /dev/null || without "there is no apt-get"
as_root=
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2> /dev/null || without "apt-get needs root, or sudo without a password"
    as_root="sudo -n"
fi

apt() {
    seconds=$1
    shift
    $as_root timeout "$seconds" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=15 -o DPkg::Lock::Timeout=60 \
        --no-install-recommends "$@" > /dev/null 2>&1
}

echo "Installing Chromium for the tests of the report ..."
apt 120 update
apt 600 install --download-only chromium fonts-liberation || without "apt-get cannot fetch it"
apt 0 install --no-download chromium fonts-liberation || without "apt-get cannot install it"
