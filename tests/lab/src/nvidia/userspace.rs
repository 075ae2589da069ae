//! The host's own user space of a driver, made with gcc: libraries that the real dynamic linker loads, and a program
//! linked against them that prints the version of each.

use crate::cache;
use crate::gpus::Nvidia;
use crate::nvidia::runfile::{self, Runfile};
use crate::program;
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where the host has its libraries.
const DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu";

/// Without a C library, so that it runs in every release, with whatever it was built.
const LIBRARY: &str = "const char *NAME(void) { return VERSION; }\n\
                       const char NAME_mark[] = \"lab nvidia library \" VERSION;\n";

/// Prints the versions of libcuda and libnvidia-ml, a line each.
const PROGRAM: &str = r#"
extern const char *lab_cuda(void), *lab_ml(void);
static long call(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}
static void out(const char *text) {
    long n = 0;
    while (text[n]) n++;
    call(1, 1, (long)text, n);
    call(1, 1, (long)"\n", 1);
}
__attribute__((force_align_arg_pointer)) void _start(void) {
    out(lab_cuda());
    out(lab_ml());
    call(231, 0, 0, 0);
}
"#;

/// The name of a library, its SONAME, and the function that tells its version. A container must not get the last one.
const LIBRARIES: [(&str, &str, &str); 3] = [
    ("libcuda", "libcuda.so.1", "lab_cuda"),
    ("libnvidia-ml", "libnvidia-ml.so.1", "lab_ml"),
    ("libEGL", "libEGL.so.1", "lab_egl"),
];

/// The shell's lines that make the libraries of a version in a directory.
fn libraries(directory: &str, version: &str) -> String {
    let make = |(name, soname, function): (&str, &str, &str)| {
        let source = LIBRARY.replace("NAME", function);
        format!(
            "gcc -shared -fPIC -nostdlib '-DVERSION=\"{version}\"' -Wl,-soname,{soname} -o {directory}/{name}.so.{version} \
             -x c - <<'C'\n{source}C\n"
        )
    };
    LIBRARIES.map(make).concat()
}

/// Those that make the program in the working directory.
fn printer() -> String {
    format!(
        "mkdir -p stubs
         for name in cuda nvidia-ml; do
             soname=lib$name.so.1; function=lab_${{name#nvidia-}}
             echo \"const char *$function(void) {{ return 0; }}\" | gcc -shared -fPIC -nostdlib -x c - -Wl,-soname,$soname -o stubs/lib$name.so
         done
         gcc -O1 -fno-stack-protector -nostdlib -nostartfiles -o driver-version -Lstubs -x c - -x none -lcuda -lnvidia-ml <<'C'\n{PROGRAM}C\n"
    )
}

/// Makes libraries and program in a directory of this machine, for a lab where no compiler is.
///
/// # Errors
/// What the shell said.
pub fn build(directory: &Path, version: &str) -> Result<()> {
    let script =
        format!("set -e; mkdir -p \"$0\"; cd \"$0\"\n{}{}rm -r stubs\n", libraries(".", version), printer());
    program::run(Command::new("sh").args(["-c", &script]).arg(directory)).map(drop)
}

/// A runfile with such a user space, which a program in a container can be linked against; one of its libraries has so
/// many bytes more.
#[track_caller]
pub fn packed(version: &str, more: usize) -> Runfile {
    let made = cache::once(&format!("userspace/{version}-{more}"), |fresh| {
        build(fresh, version)?;
        fs::remove_file(fresh.join("driver-version"))?;
        if more > 0 {
            let library = fs::read(fresh.join(format!("libcuda.so.{version}")))?;
            let more = [library, runfile::noise(more)].concat();
            fs::write(fresh.join(format!("libnvidia-nvvm.so.{version}")), more)?;
        }
        Ok(fs::write(fresh.join("nvidia-smi"), runfile::smi(version)?)?)
    });
    Runfile::new(version).tree(&made.unwrap_or_else(|e| panic!("{e:#}")))
}

#[track_caller]
fn built(directory: &Path, name: &str) -> Vec<u8> {
    let file = directory.join(name);
    std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

impl Nvidia<'_> {
    /// The host has the user space of this version, and of no other, as a runfile leaves it: libcuda, libnvidia-ml,
    /// nvidia-smi, and what a container must not get.
    #[track_caller]
    pub fn user_space(&self, version: &str) {
        self.remove_user_space();
        self.lab().sh(&format!("set -e\n{}", libraries(DIRECTORY, version))).ok();
        self.programs(version);
    }

    /// The same with libraries that were [built](build) before, in a directory outside of the lab.
    #[track_caller]
    pub fn built_user_space(&self, version: &str, directory: &Path) {
        self.remove_user_space();
        for (name, ..) in LIBRARIES {
            let file = format!("{name}.so.{version}");
            self.lab().write(format!("{DIRECTORY}/{file}"), built(directory, &file));
        }
        self.programs(version);
    }

    fn programs(&self, version: &str) {
        let program = runfile::smi(version).unwrap_or_else(|e| panic!("{e:#}"));
        self.lab().replace_program("/usr/bin/nvidia-smi", program);
        self.lab().write("/etc/OpenCL/vendors/nvidia.icd", "libnvidia-opencl.so.1\n");
    }

    /// The host has none.
    #[track_caller]
    pub fn remove_user_space(&self) {
        let names = LIBRARIES.map(|(name, ..)| format!("{DIRECTORY}/{name}.so.[0-9]*.[0-9]*.[0-9]*"));
        self.lab()
            .sh(&format!("rm -f {} /usr/bin/nvidia-smi /etc/OpenCL/vendors/nvidia.icd", names.join(" ")))
            .ok();
    }

    /// Puts a program into the root of a container that prints what the dynamic linker finds there: the versions of
    /// libcuda and libnvidia-ml. At /root/driver-version; also run by its process 1, into /root/at-boot.
    #[track_caller]
    pub fn printer(&self, id: u32) {
        self.lab().sh(&format!("set -e; cd /root\n{}", printer())).ok();
        self.give_printer(id);
    }

    /// The same with a program that was [built](build) before.
    #[track_caller]
    pub fn built_printer(&self, id: u32, directory: &Path) {
        self.lab().write("/root/driver-version", built(directory, "driver-version"));
        self.give_printer(id);
    }

    #[track_caller]
    fn give_printer(&self, id: u32) {
        let root = format!("/var/lib/vz/images/{id}/subvol-{id}-disk-0.subvol");
        self.lab()
            .sh(&format!(
                "set -e
                 mkdir -p {root}/root; cp /root/driver-version {root}/root/; chmod 755 {root}/root {root}/root/driver-version
                 [ -L {root}/usr/sbin/init ] || sed -i '2i /root/driver-version >/at-boot 2>&1' {root}/usr/sbin/init
                 : >{root}/at-boot; chmod 666 {root}/at-boot"
            ))
            .ok();
    }
}
