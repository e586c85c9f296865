import Image from "next/image";
import Link from "next/link";
import Counter from "./counter";
import logo from "../public/logo.svg";

export default function Home() {
  return (
    <main>
      <h1 id="title">home page</h1>
      <Image id="logo" src={logo} alt="logo" width={64} height={64} unoptimized />
      <Counter />
      <Link id="to-about" href="/about">about</Link>
    </main>
  );
}
