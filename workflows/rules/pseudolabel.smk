rule pseudolabel:
    input:
        upstream=upstream("pseudolabel"),
        config="<results>/{domain}/{recipe}/s{seed}/pseudolabel/config.yaml",
    output:
        manifest="<results>/{domain}/{recipe}/s{seed}/pseudolabel/manifest.json",
    log:
        "<results>/logs/{domain}/{recipe}/s{seed}/pseudolabel.log",
    conda:
        "../envs/appssl.yaml"
    threads: needs("pseudolabel", "cpus")
    resources:
        mem_mb=needs("pseudolabel", "mem_mb"),
        runtime=needs("pseudolabel", "minutes"),
        gpu=needs("pseudolabel", "gpus"),
        workers=needs("pseudolabel", "workers"),
    params:
        options=options("pseudolabel"),
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl pseudolabel --config {input.config:q} {params.options} --workers {resources.workers}"
        " --out {params.out:q} 2> {log:q}"
