// Shows a GLB as three.js loads it, on a transparent ground, at a moment of its first animation.
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

window.load = async (base64, size) => {
  const gltf = await new GLTFLoader().parseAsync(bytes(base64), "");
  const scene = new THREE.Scene();
  scene.add(gltf.scene);
  const renderer = new THREE.WebGLRenderer({ alpha: true, antialias: false, preserveDrawingBuffer: true });
  renderer.setSize(size, size);
  renderer.setClearColor(0, 0);
  const mixer = new THREE.AnimationMixer(gltf.scene);
  gltf.animations.forEach((clip) => mixer.clipAction(clip).play());
  window.loaded = { scene, renderer, mixer };
  return { duration: gltf.animations[0]?.duration ?? 0, materials: gltf.parser.json.materials?.length ?? 0 };
};

// A picture from a camera with this matrix (column by column, y up) and vertical field of view in degrees.
window.shoot = (time, matrix, fovy) => {
  const { scene, renderer, mixer } = window.loaded;
  mixer.setTime(time);
  const camera = new THREE.PerspectiveCamera(fovy, 1, 0.1, 20);
  camera.matrixAutoUpdate = false;
  camera.matrix.fromArray(matrix);
  camera.updateMatrixWorld(true);
  renderer.render(scene, camera);
  return renderer.domElement.toDataURL();
};
