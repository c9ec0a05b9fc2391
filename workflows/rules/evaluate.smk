rule evaluate:
    input:
        upstream=upstream("evaluate"),
        config="<results>/{domain}/{recipe}/s{seed}/evaluate/config.yaml",
    output:
        manifest="<results>/{domain}/{recipe}/s{seed}/evaluate/manifest.json",
    log:
        "<results>/logs/{domain}/{recipe}/s{seed}/evaluate.log",
    conda:
        "../envs/appssl.yaml"
    threads: needs("evaluate", "cpus")
    resources:
        mem_mb=needs("evaluate", "mem_mb"),
        runtime=needs("evaluate", "minutes"),
        gpu=needs("evaluate", "gpus"),
        workers=needs("evaluate", "workers"),
    params:
        options=options("evaluate"),
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl evaluate --config {input.config:q} {params.options} --workers {resources.workers}"
        " --out {params.out:q} 2> {log:q}"
