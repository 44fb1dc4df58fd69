// A bundle of `fastdiff export`: its manifest, and its files, each verified before it is opened.
//
// The hashes say that files are those of the manifest, not who made the bundle, and they hold as
// long as nobody else can write to the folder.

import { createHash } from "node:crypto";
import { createReadStream, lstatSync, readFileSync } from "node:fs";
import { join } from "node:path";

const SCHEMA = 1;

export function open(folder) {
  const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
  if (manifest.schema !== SCHEMA) {
    throw new Error(`manifest.json must be of schema ${SCHEMA}; got ${manifest.schema}`);
  }

  // The path of a file, once its length and SHA-256 are found to be right.
  async function file(name) {
    const said = Object.hasOwn(manifest.files, name) ? manifest.files[name] : undefined;
    if (!said || !/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) {
      throw new Error(`a file of the bundle must be named in its manifest; got ${name}`);
    }
    const path = join(folder, name);
    const found = lstatSync(path);
    if (!found.isFile() || found.size !== said.bytes) {
      throw new Error(`${name} must be a file of ${said.bytes} bytes; got ${found.size}`);
    }
    const hash = createHash("sha256");
    for await (const part of createReadStream(path)) hash.update(part);
    const digest = hash.digest("hex");
    if (digest !== said.sha256) {
      throw new Error(`${name} must have the SHA-256 ${said.sha256}; got ${digest}`);
    }
    return path;
  }

  // The path of a graph's ONNX file; weights may lie beside it.
  async function graph(name) {
    const said = manifest.graphs[name];
    if (!said) {
      const known = Object.keys(manifest.graphs).join(", ");
      throw new Error(`the bundle must have a graph ${name}; got ${known}. Export it with one`);
    }
    if (said.data) await file(said.data);
    return file(said.file);
  }

  // A sampler's plan.
  async function plan(name) {
    const said = manifest.samplers[name];
    if (!said) {
      const known = Object.keys(manifest.samplers).join(", ");
      throw new Error(`--sampler must be one of the bundle's, ${known}; got ${name}`);
    }
    return JSON.parse(readFileSync(await file(said), "utf8"));
  }

  return { manifest, graph, plan };
}
