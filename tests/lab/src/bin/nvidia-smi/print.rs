//! What is printed when all is well.

use crate::branch;
use crate::nvml::{Failure, Gpu, Nvml, short};

/// The newest CUDA that a branch's driver supports.
fn cuda(branch: u32) -> &'static str {
    match branch {
        0..=469 => "11.0",
        470..=509 => "11.4",
        510..=524 => "11.6",
        525..=534 => "12.0",
        535..=544 => "12.2",
        545..=549 => "12.3",
        550..=554 => "12.4",
        555..=559 => "12.5",
        560..=564 => "12.6",
        565..=569 => "12.7",
        570..=574 => "12.8",
        575..=579 => "12.9",
        580..=589 => "13.0",
        590..=594 => "13.1",
        595..=609 => "13.2",
        610..=614 => "13.3",
        _ => "13.4",
    }
}

pub(crate) fn help(version: &str) -> String {
    format!(
        "NVIDIA System Management Interface -- v{version}\n\nnvidia-smi [OPTION1 [ARG1]] [OPTION2 [ARG2]] ...\n\n    -h, --help       Print usage information and exit.\n    -L, --list-gpus  Display a list of GPUs connected to the system.\n    -q, --query      Display GPU or Unit info.\n    -i, --id=        Target a specific GPU.\n    --query-gpu=     Information about GPU.\n    --format=        Comma separated list of format options: csv, noheader.\n"
    )
}

/// `--version`; from 610 on the driver's line only points to another.
pub(crate) fn version(version: &str, nvml: &Nvml) -> String {
    let branch = branch(version);
    let head = format!("NVIDIA-SMI version  : {version}\nNVML version        : {}\n", short(&nvml.library));
    if branch < 610 {
        return format!(
            "{head}DRIVER version      : {}\nCUDA Version        : {}\n",
            nvml.kernel,
            cuda(branch)
        );
    }
    format!(
        "{head}DRIVER version      : Deprecated, see \"KMD version\" instead\nKMD version         : {}\nCUDA UMD version    : {}\n",
        nvml.kernel,
        cuda(branch)
    )
}

pub(crate) fn list(gpus: &[Gpu]) -> String {
    if gpus.is_empty() {
        return "No devices found.\n".to_owned();
    }
    let line = |gpu: &Gpu| format!("GPU {}: {} (UUID: {})\n", gpu.index, gpu.model, gpu.uuid);
    gpus.iter().map(line).collect()
}

pub(crate) fn details(gpus: &[Gpu], version: &str, nvml: &Nvml) -> String {
    let mut text = format!(
        "\n==============NVSMI LOG==============\n\nDriver Version                            : {}\nCUDA Version                              : {}\n\nAttached GPUs                             : {}\n",
        nvml.kernel,
        cuda(branch(version)),
        gpus.len()
    );
    for gpu in gpus {
        text += &format!(
            "GPU {}\n    Product Name                          : {}\n    GPU UUID                              : {}\n    Minor Number                          : {}\n",
            gpu.address, gpu.model, gpu.uuid, gpu.minor
        );
    }
    text
}

pub(crate) fn query(gpus: &[Gpu], fields: &[String], header: bool, nvml: &Nvml) -> Result<String, Failure> {
    let value = |gpu: &Gpu, field: &String| match field.as_str() {
        "index" => Ok(gpu.index.to_string()),
        "uuid" | "gpu_uuid" => Ok(gpu.uuid.clone()),
        "pci.bus_id" | "gpu_bus_id" => Ok(gpu.address.clone()),
        "driver_version" => Ok(nvml.kernel.clone()),
        "name" | "gpu_name" => Ok(gpu.model.clone()),
        "count" => Ok(gpus.len().to_string()),
        _ => Err(Failure::BadField(field.clone())),
    };
    let mut text = String::new();
    if header {
        text = fields.join(", ") + "\n";
    }
    for gpu in gpus {
        let values = fields.iter().map(|field| value(gpu, field)).collect::<Result<Vec<_>, _>>()?;
        text += &(values.join(", ") + "\n");
    }
    Ok(text)
}

pub(crate) fn table(gpus: &[Gpu], version: &str, nvml: &Nvml) -> String {
    let rule = format!("+{}+\n", "-".repeat(89));
    let head = format!(
        "NVIDIA-SMI {version:<22} Driver Version: {:<14} CUDA Version: {}",
        nvml.kernel,
        cuda(branch(version))
    );
    let mut text = format!("{rule}| {head:<87} |\n{rule}");
    let columns = format!("{:>3}  {:<40} {:<18}", "GPU", "Name", "Bus-Id");
    text += &format!("| {columns:<87} |\n|{}|\n", "=".repeat(89));
    for gpu in gpus {
        let row = format!("{:>3}  {:<40} {:<18}", gpu.index, gpu.model, gpu.address);
        text += &format!("| {row:<87} |\n");
    }
    text += &rule;
    text += &format!("| {:<87} |\n", "No running processes found");
    text + &rule
}
