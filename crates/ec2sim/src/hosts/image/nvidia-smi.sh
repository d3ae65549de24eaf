#!/bin/sh
# NVIDIA's tool, as far as it is asked: the list, the table, and queries for these fields, of the GPUs that are visible.
table=${NVIDIA_SMI_TABLE:-/etc/nvidia/gpus}
visible=${NVIDIA_VISIBLE_DEVICES:-all}

rows() {
    # Index, name, memory in MiB, UUID, driver, bus address, CUDA version, and how it is joined to others.
    while IFS='|' read -r index name memory uuid driver bus cuda state status; do
        case ",$visible," in
        *,all,* | *,"$index",* | *,"$uuid",*) echo "$index|$name|$memory|$uuid|$driver|$bus|$cuda|$state|$status" ;;
        esac
    done < "$table"
}

refuse() {
    echo "$1"
    exit 2
}

show_query() {
    fields=$1 format=$2
    case ",$format," in *,csv,*) ;; *) refuse "Only the format csv is simulated." ;; esac
    rows | awk -F'|' -v fields="$fields" -v format=",$format," '
        function value(field) {
            if (field == "index") return $1
            if (field == "name" || field == "gpu_name") return $2
            if (field == "memory.total") return $3 mib
            if (field == "memory.used") return "0" mib
            if (field == "memory.free") return $3 mib
            if (field == "uuid" || field == "gpu_uuid") return $4
            if (field == "driver_version") return $5
            if (field == "pci.bus_id" || field == "gpu_bus_id") return $6
            if (field == "fabric.state") return $8
            if (field == "fabric.status") return $9
            if (field == "utilization.gpu" || field == "utilization.memory") return "0" percent
            if (field == "temperature.gpu") return "30"
            return ""
        }
        BEGIN {
            count = split(fields, names, ",")
            mib = format ~ /,nounits,/ ? "" : " MiB"
            percent = format ~ /,nounits,/ ? "" : " %"
            known = ",index,name,gpu_name,memory.total,memory.used,memory.free,uuid,gpu_uuid,driver_version,pci.bus_id,gpu_bus_id,fabric.state,fabric.status,utilization.gpu,utilization.memory,temperature.gpu,"
            for (i = 1; i <= count; i++) {
                gsub(/ /, "", names[i])
                if (index(known, "," names[i] ",") == 0) {
                    printf "Field \"%s\" is not a valid field to query.\n", names[i]
                    failed = 2
                    exit 2
                }
            }
            if (format !~ /,noheader,/) {
                line = names[1]
                for (i = 2; i <= count; i++) line = line ", " names[i]
                print line
            }
        }
        {
            line = value(names[1])
            for (i = 2; i <= count; i++) line = line ", " value(names[i])
            print line
        }
        END { exit failed }
    '
}

show_table() {
    driver=$(rows | head -n 1 | cut -d '|' -f 5)
    cuda=$(rows | head -n 1 | cut -d '|' -f 7)
    date '+%a %b %e %H:%M:%S %Y'
    echo '+-----------------------------------------------------------------------------------------+'
    printf '| NVIDIA-SMI %-22s Driver Version: %-14s CUDA Version: %-8s |\n' "$driver" "$driver" "$cuda"
    echo '|-----------------------------------------+------------------------+----------------------+'
    rows | while IFS='|' read -r index name memory uuid driver bus _; do
        printf '| %3s  %-34s | %22s | %20s |\n' "$index" "$name" "$bus" "0MiB / ${memory}MiB"
    done
    echo '+-----------------------------------------+------------------------+----------------------+'
}

query='' format=''
[ -n "$(rows)" ] || { echo 'No devices were found'; exit 6; }
[ $# -gt 0 ] || { show_table; exit 0; }
for argument in "$@"; do
    case $argument in
    -L | --list-gpus)
        [ $# -eq 1 ] || refuse 'Invalid combination of input arguments. Please run '\''nvidia-smi -h'\'' for help.'
        rows | while IFS='|' read -r index name memory uuid driver bus _; do
            echo "GPU $index: $name (UUID: $uuid)"
        done
        ;;
    --query-gpu=*) query=${argument#*=} ;;
    --format=*) format=${argument#*=} ;;
    *) refuse "Invalid combination of input arguments. \`$argument\` is not simulated." ;;
    esac
done
if [ -n "$query" ]; then
    show_query "$query" "$format"
fi
