rule pretrain:
    input:
        upstream=upstream("pretrain"),
        config="<results>/{domain}/{recipe}/s{seed}/pretrain/config.yaml",
    output:
        manifest="<results>/{domain}/{recipe}/s{seed}/pretrain/manifest.json",
    log:
        "<results>/logs/{domain}/{recipe}/s{seed}/pretrain.log",
    conda:
        "../envs/appssl.yaml"
    threads: needs("pretrain", "cpus")
    resources:
        mem_mb=needs("pretrain", "mem_mb"),
        runtime=needs("pretrain", "minutes"),
        gpu=needs("pretrain", "gpus"),
        strategy=needs("pretrain", "strategy"),
        workers=needs("pretrain", "workers"),
    params:
        options=options("pretrain"),
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl pretrain --config {input.config:q} {params.options} --devices {resources.gpu}"
        " --strategy {resources.strategy} --workers {resources.workers}"
        " --out {params.out:q} 2> {log:q}"
