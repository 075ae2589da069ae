//! The host's own user space of a driver, made with gcc: libraries that the real dynamic linker loads, and a program
//! linked against them that prints the version of each.

use crate::gpus::Nvidia;
use crate::lab::Lab;
use crate::nvidia::runfile;

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

impl Nvidia<'_> {
    /// The host has the user space of this version, and of no other, as a runfile leaves it: libcuda, libnvidia-ml,
    /// nvidia-smi, and what a container must not get.
    #[track_caller]
    pub fn user_space(&self, version: &str) {
        let lab = self.lab();
        self.remove_user_space();
        library(lab, "libcuda", "libcuda.so.1", "lab_cuda", version);
        library(lab, "libnvidia-ml", "libnvidia-ml.so.1", "lab_ml", version);
        library(lab, "libEGL", "libEGL.so.1", "lab_egl", version);
        let program = runfile::smi(version).unwrap_or_else(|e| panic!("{e:#}"));
        lab.replace_program("/usr/bin/nvidia-smi", program);
        lab.write("/etc/OpenCL/vendors/nvidia.icd", "libnvidia-opencl.so.1\n");
    }

    /// The host has none.
    #[track_caller]
    pub fn remove_user_space(&self) {
        let names = ["libcuda", "libnvidia-ml", "libEGL"]
            .map(|name| format!("{DIRECTORY}/{name}.so.[0-9]*.[0-9]*.[0-9]*"));
        self.lab()
            .sh(&format!("rm -f {} /usr/bin/nvidia-smi /etc/OpenCL/vendors/nvidia.icd", names.join(" ")))
            .ok();
    }

    /// Puts a program into the root of a container that prints what the dynamic linker finds there: the versions of
    /// libcuda and libnvidia-ml. At /root/driver-version; in `boot` also run by its process 1, into /root/at-boot.
    #[track_caller]
    pub fn printer(&self, id: u32) {
        let lab = self.lab();
        lab.write("/root/printer.c", PROGRAM);
        let root = format!("/var/lib/vz/images/{id}/subvol-{id}-disk-0.subvol");
        lab.sh(&format!(
            "set -e; cd /root; mkdir -p stubs
             for name in cuda nvidia-ml; do
                 soname=lib$name.so.1; function=lab_${{name#nvidia-}}
                 echo \"const char *$function(void) {{ return 0; }}\" | gcc -shared -fPIC -nostdlib -x c - -Wl,-soname,$soname -o stubs/lib$name.so
             done
             gcc -O1 -fno-stack-protector -nostdlib -nostartfiles -o printer printer.c -Lstubs -lcuda -lnvidia-ml
             mkdir -p {root}/root; cp printer {root}/root/driver-version; chmod 755 {root}/root {root}/root/driver-version
             [ -L {root}/usr/sbin/init ] || sed -i '2i /root/driver-version >/at-boot 2>&1' {root}/usr/sbin/init
             : >{root}/at-boot; chmod 666 {root}/at-boot"
        ))
        .ok();
    }
}

#[track_caller]
fn library(lab: &Lab, name: &str, soname: &str, function: &str, version: &str) {
    lab.write("/root/library.c", LIBRARY.replace("NAME", function));
    let file = format!("{DIRECTORY}/{name}.so.{version}");
    lab.sh(&format!(
        "gcc -shared -fPIC -nostdlib '-DVERSION=\"{version}\"' -Wl,-soname,{soname} -o {file} /root/library.c"
    ))
    .ok();
}
