// Prints the Khronos validator's report on a file as JSON.
const { readFileSync } = require("fs");
const validator = require("gltf-validator");
validator.validateBytes(new Uint8Array(readFileSync(process.argv[2]))).then((report) => console.log(JSON.stringify(report)));
