rule finetune:
    input:
        upstream=upstream("finetune"),
        config="<results>/{domain}/{recipe}/s{seed}/finetune/config.yaml",
    output:
        manifest="<results>/{domain}/{recipe}/s{seed}/finetune/manifest.json",
    log:
        "<results>/logs/{domain}/{recipe}/s{seed}/finetune.log",
    conda:
        "../envs/appssl.yaml"
    threads: needs("finetune", "cpus")
    resources:
        mem_mb=needs("finetune", "mem_mb"),
        runtime=needs("finetune", "minutes"),
        gpu=needs("finetune", "gpus"),
        strategy=needs("finetune", "strategy"),
        workers=needs("finetune", "workers"),
    params:
        options=options("finetune"),
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl finetune --config {input.config:q} {params.options} --devices {resources.gpu}"
        " --strategy {resources.strategy} --workers {resources.workers}"
        " --out {params.out:q} 2> {log:q}"
