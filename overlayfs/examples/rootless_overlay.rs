//! Mounts an overlay as an ordinary user: in a user namespace, with marks in `user.overlay.*`.
//!
//! Linux 5.11. The program starts itself again in the namespace by `unshare(1)`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::process::Command;

use overlayfs::{Features, Marks, Overlay, Upper};

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() != Some("inside") {
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .arg(std::env::current_exe()?)
            .arg("inside")
            .status()?;
        return if status.success() {
            Ok(())
        } else {
            Err(status.to_string().into())
        };
    }
    println!(
        "in a user namespace, marks are {:?} ones",
        Marks::of_this_process()
    );
    println!("{:#?}", Features::probe()?);

    let scratch = tempfile::tempdir()?;
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| scratch.path().join(name));
    for path in [&lower, &upper, &work, &merged] {
        fs::create_dir(path)?;
    }
    fs::write(lower.join("old"), "old")?;
    fs::write(lower.join("older"), "older")?;

    let overlay = Overlay::bottom_up([&lower])
        .upper(&upper, &work)
        .mount(&merged)?;
    fs::write(merged.join("old"), "new")?;
    fs::remove_file(merged.join("older"))?;
    overlay.close()?;
    for change in Upper::over_bottom_up([&lower], &upper)?.changes() {
        println!("{}", change?);
    }
    Ok(())
}
