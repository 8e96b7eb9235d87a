//! `coracle runtime`: images on this machine, made ahead of the first deploy that needs them.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use coracle_builder::{ImagePath, ImageStore, Route, image::Mirror};
use coracle_runtimes::{Catalog, Strictness};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    error::{CliError, chain},
    output::{Output, text},
    settings::{ImageRoute, RawSettings},
};

#[derive(Debug, Args)]
pub(crate) struct Runtime {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build the images of runtimes; those that are there already are left alone
    Build {
        /// Such as python3.11 and nodejs20 [default: all]
        runtimes: Vec<String>,
        #[command(flatten)]
        place: Place,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// List the runtimes that this version knows, and which have an image here
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        place: Place,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// Data directory of the server
    #[arg(long, env = "CORACLE_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory of runtime images [default: images in the data directory]
    #[arg(long, env = "CORACLE_IMAGES", value_name = "DIR")]
    images: Option<PathBuf>,
    /// `recipe` (mmdebstrap) or `host-packages`
    #[arg(long, env = "CORACLE_IMAGE_ROUTE", value_name = "ROUTE")]
    image_route: Option<String>,
}

pub(crate) fn route(route: ImageRoute) -> Route {
    match route {
        ImageRoute::Recipe => Route::Recipe,
        ImageRoute::HostPackages => Route::HostPackages,
    }
}

impl Place {
    fn open(self) -> Result<(ImageStore, Route), CliError> {
        let raw = RawSettings {
            data: self.data,
            images: self.images,
            image_route: self.image_route,
            ..RawSettings::default()
        };
        let settings = raw.check()?;
        let environment: BTreeMap<String, String> = std::env::vars().collect();
        let store = ImageStore::open(&settings.images, Mirror::default(), &environment).map_err(
            |error| {
                CliError::Failed(format!(
                    "cannot use {}: {error}; image builds need root",
                    settings.images.display()
                ))
            },
        )?;
        Ok((store, route(settings.image_route)))
    }
}

impl Runtime {
    pub(crate) async fn run(self) -> Result<(), CliError> {
        let catalog = Catalog::builtin();
        match self.verb {
            Verb::Build {
                runtimes,
                place,
                output,
            } => {
                let (store, route) = place.open()?;
                let wanted = if runtimes.is_empty() {
                    catalog.runtimes().cloned().collect()
                } else {
                    runtimes
                        .iter()
                        .map(|name| {
                            catalog
                                .resolve(name, Strictness::Exact)
                                .map(|resolved| resolved.runtime)
                                .map_err(|error| CliError::Usage(error.to_string()))
                        })
                        .collect::<Result<Vec<_>, _>>()?
                };
                for runtime in wanted {
                    let image = build(&store, route, &runtime).await?;
                    output.item(&image, |image| {
                        outln!(
                            "{} {} {}",
                            text(image, "/name"),
                            text(image, "/image"),
                            text(image, "/rootfs")
                        );
                    })?;
                }
                Ok(())
            }
            Verb::Ls { place, output } => {
                let (store, route) = place.open()?;
                let mut items = Vec::new();
                for runtime in catalog.runtimes() {
                    let image = store
                        .find(runtime, route)
                        .map_err(|error| CliError::failed("cannot look for images", error))?;
                    items.push(described(runtime, image.as_ref()));
                }
                output.list(
                    &json!({"items": items}),
                    &[
                        ("NAME", |v| text(v, "/name")),
                        ("LANGUAGE", |v| text(v, "/language")),
                        ("IMAGE", image_cell),
                    ],
                )
            }
        }
    }
}

fn described(runtime: &coracle_runtimes::Runtime, image: Option<&ImagePath>) -> Value {
    json!({
        "name": runtime.name.as_str(),
        "language": runtime.language,
        "image": image.map(|image| image.digest.to_string()),
        "rootfs": image.map(|image| &image.rootfs),
    })
}

fn image_cell(runtime: &Value) -> String {
    let digest = text(runtime, "/image");
    digest.get(..12).map_or(digest.clone(), str::to_owned)
}

async fn build(
    store: &ImageStore,
    route: Route,
    runtime: &coracle_runtimes::Runtime,
) -> Result<Value, CliError> {
    let (progress, mut lines) = mpsc::channel::<Vec<u8>>(64);
    let name = runtime.name.as_str();
    if std::io::stderr().is_terminal() {
        eprintln!("runtime {name}");
    }
    let show = async {
        while let Some(piece) = lines.recv().await {
            // A closed standard error must not end the build.
            let _ = std::io::stderr().write_all(&piece);
        }
    };
    let making = async {
        let image = store.ensure(runtime, route, &progress).await;
        drop(progress);
        image
    };
    let (image, ()) = tokio::join!(making, show);
    let image =
        image.map_err(|error| CliError::Failed(format!("runtime {name}: {}", chain(&error))))?;
    Ok(described(runtime, Some(&image)))
}
