rule report:
    input:
        upstream=upstream("report"),
        config="<results>/{domain}/{recipe}/s{seed}/report/config.yaml",
    output:
        manifest="<results>/{domain}/{recipe}/s{seed}/report/manifest.json",
    log:
        "<results>/logs/{domain}/{recipe}/s{seed}/report.log",
    conda:
        "../envs/appssl.yaml"
    threads: needs("report", "cpus")
    resources:
        mem_mb=needs("report", "mem_mb"),
        runtime=needs("report", "minutes"),
        gpu=needs("report", "gpus"),
    params:
        options=options("report"),
        out=subpath(output.manifest, parent=True),
    shell:
        "appssl report --config {input.config:q} {params.options} --out {params.out:q} 2> {log:q}"
