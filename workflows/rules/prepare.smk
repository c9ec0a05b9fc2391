rule make:
    output:
        manifest="<results>/synthetic/{domain}-{size}-{seed}/manifest.json",
    log:
        "<results>/logs/synthetic/{domain}-{size}-{seed}.log",
    wildcard_constraints:
        size="tiny|small|large",
    conda:
        "../envs/appssl.yaml"
    threads: 1
    params:
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl data make {wildcards.domain} --size {wildcards.size} --seed {wildcards.seed}"
        " --out {params.out:q} 2> {log:q}"


rule prepare_shard:
    input:
        raw=raw_inputs,
        config="<results>/data/{key}/config.yaml",
    output:
        manifest="<results>/data/{key}/shards/{shard}/manifest.json",
    log:
        "<results>/logs/data/{key}/shard-{shard}.log",
    conda:
        "../envs/appssl.yaml"
    threads: 1
    resources:
        mem_mb=needs("prepare", "mem_mb"),
        runtime=needs("prepare", "minutes"),
    params:
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl prepare --config {input.config:q} --shard {wildcards.shard} --out {params.out:q} 2> {log:q}"


rule prepare:
    input:
        shards=shard_manifests,
        config="<results>/data/{key}/config.yaml",
    output:
        manifest="<results>/data/{key}/manifest.json",
    log:
        "<results>/logs/data/{key}/prepare.log",
    conda:
        "../envs/appssl.yaml"
    threads: 1
    resources:
        mem_mb=needs("prepare", "mem_mb"),
        runtime=needs("prepare", "minutes"),
    params:
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl prepare --config {input.config:q} --merge --out {params.out:q} 2> {log:q}"
