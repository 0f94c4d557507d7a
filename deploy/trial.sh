#!/bin/bash
# Try the systemd unit under a real systemd: deploy/trial.sh WHEEL BUNDLE PICTURE [ROOT]
# Needs root, debootstrap and systemd-container. ROOT is a Debian system, made if it is not there; nothing else changes.
# Port 8420 must be free. Every line of the trial must hold; the first that does not ends it.
set -eu
wheel=$(realpath "$1") bundle=$(realpath "$2") picture=$(realpath "$3") root=${4:-/tmp/andon-trial}
here=$(dirname "$(realpath "$0")")

[ -d "$root/etc" ] || debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,curl,ca-certificates,python3-venv bookworm "$root"
rm -rf "$root/trial" "$root/var/lib/andon" "$root/var/lib/private/andon"
install -D -t "$root/trial" "$wheel" "$here/andon-station.service"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" # pip may need a certificate of this network
cp "$bundle" "$root/trial/ring.andon"
cp "$picture" "$root/trial/picture"
python3 -c 'import uuid; print(uuid.uuid4().hex)' > "$root/etc/machine-id"

cat > "$root/trial/run" <<'TRIAL'
set -eux
unit=andon-station station=/var/lib/andon/station
ready() { timeout 60 sh -c 'until curl -sf http://127.0.0.1:8420/readyz; do sleep 0.2; done'; }
inspect() { curl -sf -H "Authorization: Bearer $key" --data-binary @picture "$url" -H 'Content-Type: image/png' -o /dev/null; }
url=http://127.0.0.1:8420/v1/products/ring/inspections?part=trial
cd /trial
python3 -m venv /opt/andon
/opt/andon/bin/pip install -q "andon[station] @ file://$(ls /trial/*.whl)"
install -m 644 andon-station.service /etc/systemd/system/
systemd-analyze verify /etc/systemd/system/andon-station.service
systemctl enable --now $unit
timeout 60 sh -c 'until journalctl -u andon-station | grep "shown once"; do sleep 0.2; done'
key=$(journalctl -u $unit | grep -o 'andon_[0-9a-f]*_[A-Za-z0-9_-]*' | head -1)
cp ring.andon /var/lib/andon/
systemctl restart $unit
ready
inspect
main=$(systemctl show -P MainPID $unit)
for folder in /etc /usr /opt /var /home; do
    if nsenter -t "$main" -m touch $folder/trial; then exit 1; fi
done
kill -9 "$main"
sleep 2
ready
inspect
systemctl stop $unit
[ "$(systemctl show -P Result $unit)" = success ]
/opt/andon/bin/andon audit verify --records $station/records.db --pictures $station/pictures
TRIAL
cat > "$root/etc/systemd/system/trial.service" <<'TRIAL'
[Service]
Type=oneshot
WorkingDirectory=/trial
ExecStart=/bin/sh -c 'bash run > log 2>&1; echo $? > result; systemctl poweroff'
TRIAL
systemd-nspawn -q -D "$root" --boot --register=no --keep-unit --resolv-conf=copy-host --console=pipe \
    systemd.wants=trial.service > /dev/null < /dev/null
cat "$root/trial/log"
exit "$(cat "$root/trial/result")"
