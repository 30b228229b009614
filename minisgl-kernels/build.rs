//! With the feature `cuda`: compiles csrc/**/*.cu with nvcc into one static library. Needs no GPU, no driver and
//! no network. With the feature `bindgen`: writes src/cuda/bindings.rs anew from the C header.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::compile();
    #[cfg(feature = "bindgen")]
    bindings::generate();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::{env, fs, process, thread};

    const ARCHS: &str = "MINISGL_CUDA_ARCHS";
    /// The last plain architecture also goes in as PTX, which the driver compiles for chips that come later.
    const DEFAULT_ARCHS: &str = "80,90a";

    pub(crate) fn compile() {
        for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", ARCHS] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let mut files = Vec::new();
        for dir in ["csrc", "include"] {
            println!("cargo::rerun-if-changed={dir}");
            list(Path::new(dir), &mut files);
        }
        files.sort();
        for file in &files {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        println!("cargo::rustc-env=MINISGL_KERNELS_HASH={:016x}", hash(&files));
        let sources: Vec<_> =
            files.into_iter().filter(|f| f.extension().is_some_and(|e| e == "cu")).collect();

        let nvcc = find_nvcc().unwrap_or_else(|tried| {
            fail(&format!(
                "the feature 'cuda' needs nvcc, and there is none: tried {tried}. Run `make cuda-toolkit` (or \
                 ci/cuda-toolkit) to fetch it without root, install the CUDA toolkit 13.0, or set NVCC"
            ))
        });
        let objects = compile_all(&nvcc, &sources);
        let mut archive = cc::Build::new();
        archive.cargo_metadata(false).objects(objects).compile("minisgl_cuda");

        println!("cargo::rustc-link-search=native={}", env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
        println!("cargo::rustc-link-lib=static=minisgl_cuda");
        println!("cargo::rustc-link-search=native={}", static_cudart_dir(&nvcc).display());
        println!("cargo::rustc-link-lib=static=cudart_static");
        link_stdcxx();
        for lib in ["dl", "rt", "pthread"] {
            println!("cargo::rustc-link-lib={lib}");
        }
    }

    /// Names the device code, so that what was measured with other code is not believed: FNV-1a of all of it.
    fn hash(files: &[PathBuf]) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for file in files {
            for byte in fs::read(file).unwrap_or_else(|e| fail(&format!("{}: {e}", file.display()))) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash
    }

    /// The launch stubs that nvcc generates need the guards of local statics; the static library spares the
    /// program a dependency for them.
    fn link_stdcxx() {
        let compiler = cc::Build::new().cpp(true).cargo_metadata(false).get_compiler();
        let found = compiler.to_command().arg("-print-file-name=libstdc++.a").output();
        let path =
            found.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim())).unwrap_or_default();
        match path.parent().filter(|_| path.is_absolute()) {
            Some(dir) => {
                println!("cargo::rustc-link-search=native={}", dir.display());
                println!("cargo::rustc-link-lib=static=stdc++");
            }
            None => println!("cargo::rustc-link-lib=stdc++"),
        }
    }

    fn fail(message: &str) -> ! {
        println!("cargo::error={message}");
        process::exit(1);
    }

    fn list(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap_or_else(|e| fail(&format!("{}: {e}", dir.display()))) {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                list(&path, files);
            } else {
                files.push(path);
            }
        }
    }

    /// NVCC, then CUDA_HOME and CUDA_PATH, then PATH, then the virtual environment of ci/cuda-toolkit, then the
    /// usual place.
    fn find_nvcc() -> Result<PathBuf, String> {
        if let Some(nvcc) = env::var_os("NVCC") {
            return Ok(nvcc.into());
        }
        let mut candidates = Vec::new();
        for name in ["CUDA_HOME", "CUDA_PATH"] {
            candidates.extend(env::var_os(name).map(|home| Path::new(&home).join("bin/nvcc")));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        candidates.extend(env::split_paths(&path).map(|dir| dir.join("nvcc")));
        if let Ok(pythons) = fs::read_dir("../.cuda/lib") {
            let wheels = |e: fs::DirEntry| e.path().join("site-packages/nvidia/cu13/bin/nvcc");
            candidates.extend(pythons.flatten().map(wheels));
        }
        candidates.push("/usr/local/cuda/bin/nvcc".into());
        match candidates.iter().find(|c| c.is_file()) {
            Some(nvcc) => Ok(fs::canonicalize(nvcc).unwrap_or_else(|_| nvcc.clone())),
            None => Err("NVCC, CUDA_HOME, CUDA_PATH, PATH, .cuda and /usr/local/cuda".into()),
        }
    }

    /// The flags that pick what code is generated, from a list such as `80,90a`.
    fn arch_flags(archs: &str) -> Vec<String> {
        let archs: Vec<&str> = archs.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
        let newest_plain = archs.iter().rfind(|a| a.bytes().all(|b| b.is_ascii_digit()));
        if archs.is_empty() {
            fail(&format!("{ARCHS} names no architecture: give a list such as {DEFAULT_ARCHS}"));
        }
        let flag = |arch: &&str| {
            if Some(arch) == newest_plain {
                format!("arch=compute_{arch},code=[sm_{arch},compute_{arch}]")
            } else {
                format!("arch=compute_{arch},code=sm_{arch}")
            }
        };
        archs.iter().map(flag).collect()
    }

    /// One process a file, side by side: files compiled together would need relocatable device code.
    fn compile_all(nvcc: &Path, sources: &[PathBuf]) -> Vec<PathBuf> {
        let archs = arch_flags(&env::var(ARCHS).unwrap_or_else(|_| DEFAULT_ARCHS.into()));
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
        let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let next = AtomicUsize::new(0);
        let compile_one = |source: &Path| {
            let name = source.to_string_lossy().replace(['/', '\\'], "-");
            let object = out_dir.join(name).with_extension("o");
            // NVCC may have a wrapper before it, as in `ccache nvcc`.
            let command_line = nvcc.to_string_lossy();
            let mut words = command_line.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or("nvcc"));
            command.args(words).args(["-c", "-O3", "-std=c++17", "-lineinfo", "-Iinclude", "-Icsrc"]);
            command.args(["-Xcompiler", "-fPIC,-Wall,-Wextra", "-Xptxas", "-v"]);
            for arch in &archs {
                command.args(["-gencode", arch]);
            }
            let output = command.arg("-o").arg(&object).arg(source).output();
            let output = output.unwrap_or_else(|e| fail(&format!("{}: {e}", nvcc.display())));
            let messages = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            let level = if output.status.success() { "warning" } else { "error" };
            let (report, messages): (Vec<_>, Vec<_>) =
                messages.lines().filter(|l| !l.trim().is_empty()).partition(|l| is_resource_report(l));
            for line in messages {
                println!("cargo::{level}={line}");
            }
            fs::write(object.with_extension("ptxas"), report.join("\n") + "\n")
                .unwrap_or_else(|e| fail(&format!("{}: {e}", object.display())));
            if !output.status.success() {
                fail(&format!("{command_line} could not compile {}", source.display()));
            }
            object
        };
        thread::scope(|scope| {
            let work = || {
                let mut objects = Vec::new();
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    objects.push(compile_one(source));
                }
                objects
            };
            let workers: Vec<_> = (0..jobs.min(sources.len())).map(|_| scope.spawn(work)).collect();
            let mut objects: Vec<_> =
                workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|_| process::exit(1))).collect();
            objects.sort();
            objects
        })
    }

    /// Whether ptxas says here what registers and memory a kernel takes, which ci/cuda reads.
    fn is_resource_report(line: &str) -> bool {
        line.starts_with("ptxas info") || line.trim_end().ends_with("bytes spill loads")
    }

    /// The folder with libcudart_static.a: of a toolkit, of a distribution's package or of the wheels.
    fn static_cudart_dir(nvcc: &Path) -> PathBuf {
        // With a wrapper before it the compiler is the last word.
        let text = nvcc.to_string_lossy();
        let program = PathBuf::from(text.split_whitespace().last().unwrap_or("nvcc"));
        let on_path = env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .map(|d| d.join(&program))
            .find(|p| p.is_file());
        let program = on_path.unwrap_or(program);
        let program = fs::canonicalize(&program).unwrap_or(program);
        let root = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr/local/cuda"));
        let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
        let folders = [
            "lib64".into(),
            "lib".into(),
            format!("targets/{arch}-linux/lib"),
            format!("lib/{arch}-linux-gnu"),
        ];
        match folders.iter().map(|f| root.join(f)).find(|d| d.join("libcudart_static.a").is_file()) {
            Some(dir) => dir,
            None => fail(&format!(
                "no libcudart_static.a under {}: is the CUDA runtime installed?",
                root.display()
            )),
        }
    }
}

#[cfg(feature = "bindgen")]
mod bindings {
    pub(crate) fn generate() {
        const HEADER: &str = "include/minisgl_kernels.h";
        const OUT: &str = "src/cuda/bindings.rs";
        println!("cargo::rerun-if-changed={HEADER}");
        println!("cargo::rerun-if-changed={OUT}");
        let bindings = bindgen::Builder::default()
            .header(HEADER)
            .allowlist_item("(msgl|MSGL)_.*")
            // A status or an enum value that Rust does not know must not be undefined behaviour.
            .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
            .prepend_enum_name(false)
            .layout_tests(true)
            .derive_debug(true)
            .derive_default(false)
            .use_core()
            .rust_edition(bindgen::RustEdition::Edition2024)
            .raw_line("// Generated from include/minisgl_kernels.h by `cargo build --features bindgen`.")
            .formatter(bindgen::Formatter::Prettyplease)
            .clang_args(gcc_include());
        let written = bindings.generate().map_err(|e| e.to_string()).and_then(|b| {
            let text = b.to_string();
            // Left alone where nothing changed, so that a second build is not a change.
            if std::fs::read_to_string(OUT).is_ok_and(|old| old == text) {
                return Ok(());
            }
            std::fs::write(OUT, text).map_err(|e| e.to_string())
        });
        if let Err(error) = written {
            println!("cargo::error={OUT}: {error}");
            std::process::exit(1);
        }
    }

    /// libclang without its own headers does not find stddef.h: gcc's will do.
    fn gcc_include() -> Vec<String> {
        let output = std::process::Command::new("gcc").arg("-print-file-name=include").output();
        match output {
            Ok(o) if o.status.success() => {
                vec!["-isystem".into(), String::from_utf8_lossy(&o.stdout).trim().into()]
            }
            _ => Vec::new(),
        }
    }
}
