import { redirect } from "next/navigation";

export const dynamic = "force-dynamic";

// A redirect that is decided when the page is asked for, as a login does.
export default function Login() {
  redirect("/about?from=login");
}
