// Makes the module: node build.mjs [FILE], `transform.wasm` without a name.
import { componentize } from '@bytecodealliance/componentize-js';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const file = process.argv[2] ?? 'transform.wasm';
// The contract stands beside this file, or, in the repository of EventPulse, with the SDK.
const wit = [join(here, 'wit'), join(here, '../../wit')].find((folder) => existsSync(folder));

const { component } = await componentize({
  sourcePath: join(here, 'transform.js'),
  witPath: wit,
  worldName: 'transformer',
  // Each of these imports something of the outside, and EventPulse refuses a module that does.
  disableFeatures: ['stdio', 'random', 'clocks', 'http', 'fetch-event'],
});
await writeFile(file, component);
console.log(`${file}: ${component.length} bytes`);
